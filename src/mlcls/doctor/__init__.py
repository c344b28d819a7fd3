"""`mlcls doctor`: what a machine, a repository and a server are fit for."""
