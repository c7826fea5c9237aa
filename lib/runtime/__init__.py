"""The worker process: settings, clock, logging, TLS certificate, retries, URLs and limits."""
