"""The speed of the worker, compared with other ways to reach a model server: `python -m benchmarks --help`.

`subjects` has the ways to reach the model server, `loads` the loads on them, `rounds` the order of the
measurements, `measurement` a single one, `results` and `targets` the evaluation, `report` the tables.
The load comes from a process of its own (`generator`), the answers from another one (`fast_model`).
`load_test` and `reports` are benchmarks of their own: of the load test, and of the worker's reports.
`known_capacity` measures the worker's own benchmark, with the model servers of `known_servers`.
"""
