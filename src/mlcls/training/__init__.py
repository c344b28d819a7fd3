"""Networks of the six models: building, initializing, loading weights. Needs the extra `train`."""
