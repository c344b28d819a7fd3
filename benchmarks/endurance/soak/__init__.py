"""Soak run: a supervised server under steady load and planned faults."""
