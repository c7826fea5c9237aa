"""Values into typed fields: JSON and URL parameters into dataclasses, and types in words."""
