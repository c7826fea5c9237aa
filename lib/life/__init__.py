"""The running worker: its configuration, its assembly, its tasks, and its shutdown."""
