"""Weights quantized again, by the rules of their scheme: a module a scheme, named like the one that reads it.

====================== ===========================================
:mod:`~.encoder`       what all of them do, and by which rules
:mod:`~.choice`        which encoder is for which weight
:mod:`~.groups`        what GPTQ, AWQ and compressed-tensors share
:mod:`~.gguf_scales`   how llama.cpp finds the scales of k-quants
:mod:`~.four_bit`      nf4 and fp4 of bitsandbytes
:mod:`~.int8`          int8 of bitsandbytes
:mod:`~.fp8`           float8
:mod:`~.gptq`          GPTQ
:mod:`~.awq`           AWQ
:mod:`~.compressed`    compressed-tensors
:mod:`~.gguf`          tensors of GGUF files
:mod:`~.gguf_blocks`   GGUF's blocks of 32
:mod:`~.gguf_k_blocks` GGUF's k-quants
====================== ===========================================
"""
