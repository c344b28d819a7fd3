"""Serve PaddleX image multi-label classification models on Triton Inference Server."""

__version__ = "0.1.0"
