"""The Triton model repository: folders, names, configurations, manifests, versions, publishing."""
