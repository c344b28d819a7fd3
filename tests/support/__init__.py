"""What test files share: small models and datasets, servers, and programs that other environments run."""
