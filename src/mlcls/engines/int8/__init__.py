"""The INT8 engine: post-training quantization for CPUs."""
