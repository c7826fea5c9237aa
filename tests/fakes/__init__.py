"""Servers, clients and workers for the tests, which misbehave on request and record what they received."""
