"""PyWorker: the worker between clients, a local model server and the serverless engine."""

__version__ = "0.1.0"
