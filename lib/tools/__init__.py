"""The command line `pyworker`: its commands and the load test."""
