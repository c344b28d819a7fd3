"""TensorRT plans and TensorRT-RTX engines."""
