"""The FP16 engine: an ONNX graph with as little FP32 as passes the gate."""
