"""Quantized checkpoints, read as the values that they stand for, and written again: numpy only.

====================== =============================================================
:mod:`~.recognition`   which scheme it is, by its configuration or its tensors
:mod:`~.view`          the checkpoint as the tensors that it stands for
:mod:`~.agreement`     the view that an adapter was trained on against this one
:mod:`~.weight`        what all schemes share: a weight computed from what is stored
:mod:`~.grid`          scales, or zero points, that blocks of a matrix share
:mod:`~.packing`       integers of a few bits in larger ones
:mod:`~.four_bit`      nf4 and fp4 of bitsandbytes
:mod:`~.int8`          int8 of bitsandbytes
:mod:`~.gptq`          GPTQ
:mod:`~.awq`           AWQ
:mod:`~.fp8`           float8 with scales for blocks, rows, or a whole tensor
:mod:`~.compressed`    compressed-tensors
:mod:`~.gguf_file`     GGUF: the container
:mod:`~.gguf_names`    GGUF's names and rows as those of transformers
:mod:`~.gguf_blocks`   GGUF's blocks of 32
:mod:`~.gguf_k_blocks` GGUF's k-quants
:mod:`~.encoding`      weights quantized again
====================== =============================================================
"""
