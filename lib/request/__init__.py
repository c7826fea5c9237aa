"""One request: its exchange, its verdict, its lane and slot, the session it is in, its observers."""
