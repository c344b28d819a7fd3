"""What a model is: its spec, the catalog, thresholds and labels, metrics."""
