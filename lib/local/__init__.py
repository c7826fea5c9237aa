"""Stand-ins for development on one machine: the local engine and the demo."""
