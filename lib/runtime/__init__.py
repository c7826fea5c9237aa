"""The worker process: settings, clock, logging, TLS certificate, retries, URLs, limits and exit statuses."""
