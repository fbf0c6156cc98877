"""Merging: base and adapter in, a checkpoint and a receipt out.

======================== ==================================================================
:mod:`~.base`            base models, opened lazily
:mod:`~.quantized_base`  quantized base models, as the values that they stand for
:mod:`~.unread`          bases that are quantized by a method that is not read
:mod:`~.pickled_base`    weights that torch pickled, opened without running anything
:mod:`~.ties`            tensors that share one set of values
:mod:`~.fit`             does this adapter belong on this base? asked before a byte is written
:mod:`~.comparison`      what keeps a target from changing a tensor
:mod:`~.missing`         why a target finds none
:mod:`~.expert_names`    how checkpoints name the experts that models stack
:mod:`~.stacked`         the change of a stack, as changes of the tensors in its place
:mod:`~.growing`         targets that make a table longer
:mod:`~.growth`          a base with room for their rows
:mod:`~.against`         the same question to a base of any form
:mod:`~.pin`             an adapter that states which base it was made for
:mod:`~.plan`            what will be written, tensor by tensor
:mod:`~.options`         what shapes the output
:mod:`~.dtype_rules`     in which element types
:mod:`~.ranges`          of what bytes a file of it is made, and in which blocks
:mod:`~.engine`          all files of weights, written by several workers
:mod:`~.output`          one of these files while it is written
:mod:`~.processor`       what computes the blocks
:mod:`~.accelerator`     a GPU as such, by torch
:mod:`~.kernel`          the arithmetic of a block, on the CPU
:mod:`~.workers`         the threads
:mod:`~.hashing`         digests of files whose blocks come in any order
:mod:`~.journal`         what is on the disk already, for a merge that is killed
:mod:`~.staging`         the folder in which the output is made
:mod:`~.destination`     the place that it takes
:mod:`~.watch`           whether the base stays what it was
:mod:`~.retention`       whether enough of the changes survived
:mod:`~.companions`      the other files of a folder
:mod:`~.documents`       these files, configuration and index, written
:mod:`~.checkpoint`      the merge of a safetensors checkpoint
:mod:`~.preview`         what it would do, told without doing it
:mod:`~.onnx_model`      the merge into an ONNX model
:mod:`~.onnx_edits`      the initializers that change
:mod:`~.onnx_data`       its external data, by the engine
:mod:`~.onnx_files`      its files
:mod:`~.packed`          the kernel of packed tensors
:mod:`~.receipt`         what a merge did
:mod:`~.recorded`        receipts read back, and files held against them
:mod:`~.replay`          a merge done again from its receipt
:mod:`~.undo_patch`      the reverse patch of a merge, made
:mod:`~.undo_runs`       which bytes of the base the merged files hold
:mod:`~.undo_header`     what it says about itself
:mod:`~.undo_block`      what it holds
:mod:`~.unmerge`         the base back, byte by byte
:mod:`~.recompute`       is a checkpoint base + adapter? asked of any program's output
:mod:`~.expectation`     which tensors it has to hold
:mod:`~.matrix`          its tensors as matrices, of which rows are read or computed
:mod:`~.judge`           whether a tensor holds what it has to
:mod:`~.judgement`       what is said of it
:mod:`~.stays_quantized` the same of a checkpoint that is quantized itself
:mod:`~.judge_encoded`   whether a weight that was quantized again holds what it has to
:mod:`~.untouched`       tensors that are to be the base's
:mod:`~.formula`         the changes of the format, in float64
:mod:`~.outcome`         what sound arithmetic makes of them
:mod:`~.interval`        numbers known up to a bound
:mod:`~.nearest`         rounding by the definitions of the types
:mod:`~.roundings`       orders of rounding, by name
:mod:`~.misreadings`     mistakes, by name
======================== ==================================================================
"""
