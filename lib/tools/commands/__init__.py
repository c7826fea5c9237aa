"""The commands of `pyworker`, one module each. A command imports what it needs only when it is run."""
