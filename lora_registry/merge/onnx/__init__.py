"""The merge into an ONNX model.

==================== =========================================
:mod:`~.model`       the merge as a whole
:mod:`~.edits`       the initializers that change
:mod:`~.data`        its external data, by the engine
:mod:`~.files`       its files
:mod:`~.replay`      a merge done again from its receipt
:mod:`~.quantized`   into quantized operators
:mod:`~.requantized` into quantized operators, quantized again
==================== =========================================
"""
