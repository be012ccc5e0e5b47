"""Hand-over: a run for other programs: a Hub folder, a timm state dict, an ONNX file."""
