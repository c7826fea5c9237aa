"""Workers as authors elsewhere have written them, which must run unmodified."""
