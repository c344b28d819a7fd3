"""The command `mlcls-client`."""
