"""How requests travel: connections, the served contract, retries, errors, shared memory."""
