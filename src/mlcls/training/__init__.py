"""Train the six models: networks, the loop, checkpoints, export. Needs the extra `train`."""
