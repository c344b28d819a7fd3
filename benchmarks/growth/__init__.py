"""How cost grows with models, clients, size of photos, batch and labels."""
