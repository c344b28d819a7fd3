"""How fast the served models are: goals, peers, the matrix of loads, engines, precisions."""
