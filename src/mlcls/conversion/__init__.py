"""From a Paddle graph to the ONNX graph that is served."""
