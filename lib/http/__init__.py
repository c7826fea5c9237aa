"""HTTP/1.1 on a socket: heads, chunked bodies, and time limits of connections."""
