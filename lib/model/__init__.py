"""The model server: its connection, its answers, its log, readiness and the benchmark."""
