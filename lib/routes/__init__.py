"""The routes that every worker has: management and sessions."""
