"""Datasets of PaddleX's `MLClsDataset` layout."""
