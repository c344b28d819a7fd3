"""Paddle's and PaddleX's files: inference.yml, parameters, pickles, and the predictor that runs them."""
