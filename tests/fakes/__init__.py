"""Peers with malice, for the tests: they stall, reset, trickle, refuse, and note what was done to them."""
