"""Networks of the six models: building, initialising, loading weights. Needs the extra `train`."""
