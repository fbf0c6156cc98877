"""Merging: base and adapter in, a checkpoint and a receipt out.

========================= ======================================================================
:mod:`~.bases`            base models of any form, opened lazily
:mod:`~.fitting`          does this adapter belong on this base?
:mod:`~.unread`           bases that are quantized by a method that is not read
:mod:`~.plan`             what will be written, tensor by tensor
:mod:`~.requantized_plan` the same of a merge that quantizes again
:mod:`~.options`          what shapes the output
:mod:`~.dtype_rules`      in which element types
:mod:`~.ranges`           of what bytes a file of it is made, and in which blocks
:mod:`~.engine`           all files of weights, written by several workers
:mod:`~.output`           one of these files while it is written
:mod:`~.processor`        what computes the blocks
:mod:`~.accelerator`      a GPU as such, by torch
:mod:`~.kernel`           the arithmetic of a block, on the CPU
:mod:`~.requantize`       weights that are quantized again
:mod:`~.workers`          the threads
:mod:`~.threads`          waiting for them, whatever signal comes
:mod:`~.hashing`          digests of files whose blocks come in any order
:mod:`~.journal`          what is on the disk already, for a merge that is killed
:mod:`~.staging`          the folder in which the output is made
:mod:`~.destination`      the place that it takes
:mod:`~.watch`            whether the base stays what it was
:mod:`~.retention`        whether enough of the changes survived
:mod:`~.companions`       the other files of a folder
:mod:`~.documents`        these files, configuration and index, written
:mod:`~.checkpoint`       the merge of a safetensors checkpoint
:mod:`~.preview`          what it would do, told without doing it
:mod:`~.packed`           the kernel of packed tensors
:mod:`~.onnx`             the same into an ONNX model
:mod:`~.receipt`          what a merge did
:mod:`~.recorded`         receipts read back, and files held against them
:mod:`~.replay`           a merge done again from its receipt
:mod:`~.undo`             the base back, byte by byte
:mod:`~.proof`            is a checkpoint base + adapter? asked of any program's output
========================= ======================================================================
"""
