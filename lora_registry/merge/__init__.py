"""Merging: base and adapter in, a checkpoint and a receipt out.

====================== ==================================================================
:mod:`~.base`          base models, opened lazily
:mod:`~.ties`          tensors that share one set of values
:mod:`~.names`         target names against base names
:mod:`~.fit`           does this adapter belong on this base? asked before a byte is written
:mod:`~.plan`          what will be written, tensor by tensor
:mod:`~.stream`        bytes in, bytes out, both hashed on the way
:mod:`~.checkpoint`    the merge of a safetensors checkpoint
:mod:`~.receipt`       what a merge did
====================== ==================================================================
"""
