"""Soak run: a supervised server under steady load while faults are injected."""
