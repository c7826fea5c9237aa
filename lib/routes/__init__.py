"""The routes that every worker has: management, sessions, metrics."""
