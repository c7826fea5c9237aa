"""PyWorker: the worker between clients, a local model server and the serverless engine."""
