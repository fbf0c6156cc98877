"""Merging: base and adapter in, a checkpoint and a receipt out.

====================== ==================================================================
:mod:`~.base`          base models, opened lazily
:mod:`~.ties`          tensors that share one set of values
:mod:`~.fit`           does this adapter belong on this base? asked before a byte is written
:mod:`~.against`       the same question to a base of any form
:mod:`~.pin`           an adapter that states which base it was made for
:mod:`~.plan`          what will be written, tensor by tensor
:mod:`~.shard`         one file of it, written block by block
:mod:`~.stream`        bytes in, bytes out, both hashed on the way
:mod:`~.companions`    the other files of a folder
:mod:`~.checkpoint`    the merge of a safetensors checkpoint
:mod:`~.onnx_model`    the merge into an ONNX model
:mod:`~.receipt`       what a merge did
====================== ==================================================================
"""
