"""Paddle's and PaddleX's files: archives, `inference.yml`, parameters and pickles; and the predictor that runs them."""
