"""Models that run: loading, exporting, verifying, and what this machine can do (torch, onnxruntime).

======================== ===========================================================
:mod:`~.packages`        optional packages, and the line that installs a missing one
:mod:`~.quiet`           silence for other libraries
:mod:`~.torch_model`     a base model as PyTorch runs it
:mod:`~.names`           which parameter is which tensor of the checkpoint
:mod:`~.resolve`         which parameter is which target of an adapter
:mod:`~.change`          what a target does to its base tensor, in torch
:mod:`~.adapted`         a model with an adapter beside its weights
:mod:`~.resident`        an adapter merged into weights that torch holds, where they are
:mod:`~.signature`       inputs and outputs of an exported model
:mod:`~.export`          PyTorch to ONNX, with names that stay
:mod:`~.onnx_write`      the exported graph on disk
:mod:`~.probe_model`     one MatMul as bytes, to prove a provider with
:mod:`~.ort`             ONNX Runtime sessions that run where they were asked to
:mod:`~.sources`         adapters as a program names them
:mod:`~.session`         a session with adapters merged at load
:mod:`~.slot_values`     what an adapter feeds to a switchable model
:mod:`~.adapter_pool`    many adapters in memory, one session, one choice a request
:mod:`~.batched`         one run, and an adapter of its own for each row
:mod:`~.generate`        decoding with a KV cache
:mod:`~.samples`         inputs to compare models with
:mod:`~.compare`         how far two outputs are apart
:mod:`~.verify`          is the merged model base + adapter?
:mod:`~.cuda_libraries`  CUDA as ONNX Runtime would find it
:mod:`~.doctor`          what is installed, what runs, what mends the rest
======================== ===========================================================
"""
