"""The commands of `pyworker`, a module each. What one needs is imported when it is asked for."""
