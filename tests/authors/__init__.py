"""Workers as authors elsewhere have written them, run here unmodified."""
