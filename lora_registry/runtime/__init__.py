"""Models that run: loading, exporting, verifying, and what this machine can do (torch, onnxruntime)."""
