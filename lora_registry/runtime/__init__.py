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
:mod:`~.model_inputs`    inputs of a model by name, with their axes
:mod:`~.signature`       inputs and outputs of an exported model
:mod:`~.signature_pair`  an encoder-decoder as two graphs
:mod:`~.trace`           a module as a graph, and where its tensors are in it
:mod:`~.graph_repairs`   what torch's exporter gets wrong, put right
:mod:`~.export`          PyTorch to ONNX, with names that stay
:mod:`~.export_merge`    an adapter merged on export
:mod:`~.export_place`    where an export goes, whole or not at all
:mod:`~.export_folder`   what an exported folder holds beside the graphs
:mod:`~.export_report`   what an export wrote
:mod:`~.genai_config`    how onnxruntime-genai runs an exported decoder
:mod:`~.onnx_write`      the exported graph on disk
:mod:`~.probe_model`     one MatMul as bytes, to prove a provider with
:mod:`~.ort`             ONNX Runtime sessions that run where they were asked to
:mod:`~.sources`         adapters as a program names them
:mod:`~.session`         a session with adapters merged at load
:mod:`~.slot_values`     what an adapter feeds to a switchable model
:mod:`~.adapter_pool`    many adapters in memory, one session, one choice a request
:mod:`~.batched`         one run, and an adapter of its own for each row
:mod:`~.generate`        decoding with a KV cache
:mod:`~.encoder_decoder` an exported encoder-decoder, run
:mod:`~.samples`         inputs to compare models with
:mod:`~.compare`         how far two outputs are apart
:mod:`~.quantized`       whether a model can be held against an unquantized base at all
:mod:`~.verify`          is the merged model base + adapter?
:mod:`~.cuda_libraries`  CUDA as ONNX Runtime would find it
:mod:`~.doctor`          what is installed, what runs, what mends the rest
======================== ===========================================================
"""
