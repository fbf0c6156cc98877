"""Base models, opened lazily, and what is known of their tensors before an adapter comes.

==================== =================================================================
:mod:`~.base`        checkpoints of safetensors
:mod:`~.pickled`     weights that torch pickled, opened without running anything
:mod:`~.quantized`   quantized ones, and GGUF files, as the values that they stand for
:mod:`~.requantized` the same for a merge that quantizes again
:mod:`~.ties`        tensors that share one set of values
==================== =================================================================
"""
