"""The launcher, to which `start_server.sh` hands over: from an instance's boot to its worker's end.

It runs before any environment exists. So it imports the standard library, its own modules, and those of
lib/runtime/ that do the same.
"""
