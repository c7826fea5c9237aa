"""Deployments of Vast.ai's SDK, the package `vastai`: decorated functions, served by this worker."""
