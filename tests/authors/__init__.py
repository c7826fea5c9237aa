"""Workers as authors write them; they must run unmodified."""
