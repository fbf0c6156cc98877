"""Switchable models: slots for adapters in a graph, and the files that fill them.

======================== =========================================
:mod:`~.insert`          a model with slots for adapters
:mod:`~.manifest`        the note of a switchable model: its slots
:mod:`~.targets`         which targets get slots
:mod:`~.seat`            where a branch goes beside an operator
:mod:`~.quantized_seats` the same beside quantized operators
:mod:`~.branch`          the nodes of a branch
:mod:`~.factors`         an adapter as what its slots take
:mod:`~.stack`           several, for a batched model
:mod:`~.adapter_file`    ONNX Runtime's .onnx_adapter
:mod:`~.flatbuffer`      as much of FlatBuffers as that needs
======================== =========================================
"""
