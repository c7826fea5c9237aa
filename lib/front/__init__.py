"""The way in: clients' connections, and who carries the requests on them."""
