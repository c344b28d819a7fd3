"""One `predict` call, which `Model` and `AsyncModel` wait for in their own ways."""
