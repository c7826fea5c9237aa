"""Access: bodies, envelopes, payloads, signatures, replay protection, and who may use the worker."""
