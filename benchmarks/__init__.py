"""The speed of the worker, compared with other ways to reach a model server: `python -m benchmarks --help`.

`subjects` has what is compared, `loads` what it is compared under, `rounds` the order of the measurements,
`measurement` one of them, `results` and `targets` what follows from all of them, `report` how that is shown.
The load comes from a process of its own (`generator`), the answers from another one (`fast_model`).
`load_test` and `reports` are benchmarks of their own: of the load test, and of the worker's reports.
"""
