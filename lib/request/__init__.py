"""One request: its exchange, verdict, lane and slot, its session, and the observers of its steps."""
