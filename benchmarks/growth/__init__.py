"""How cost grows with models, clients, photo size, batch and labels."""
