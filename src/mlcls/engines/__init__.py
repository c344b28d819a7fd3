"""Engines: what runs a model, the gate that each engine must pass, and their builds."""
