"""Declarations of workers: configurations, declared handlers, Python functions, bare routes."""
