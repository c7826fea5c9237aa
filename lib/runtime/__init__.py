"""The worker process: its environment, clock, log lines, certificate and names."""
