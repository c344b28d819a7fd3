"""How good a model is on an annotated dataset, whatever runs it."""
