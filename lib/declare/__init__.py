"""What an author may declare: configurations, declared handlers, Python functions, bare routes."""
