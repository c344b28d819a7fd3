"""How requests travel: connections, retries, errors, shared memory, the state of the server."""
