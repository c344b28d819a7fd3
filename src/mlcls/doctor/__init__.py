"""`mlcls doctor`: check a machine, a repository and a running server."""
