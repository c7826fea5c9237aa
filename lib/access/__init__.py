"""May this request in, and when: bodies, signatures, replay, the queue."""
