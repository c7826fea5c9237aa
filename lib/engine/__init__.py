"""The serverless engine: its public key and the reports to it."""
