"""What an author runs from a shell: the command line and the load test."""
