"""The life of a running worker: assembly, start, drain and end."""
