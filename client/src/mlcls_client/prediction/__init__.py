"""One `predict` call: its options, requests and results, shared by `Model` and `AsyncModel`."""
