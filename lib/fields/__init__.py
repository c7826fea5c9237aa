"""Typed fields: JSON and URL parameters into dataclasses, and checks of types and limits."""
