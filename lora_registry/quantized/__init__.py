"""Quantized checkpoints, read as the values that they stand for: numpy only, a module a scheme.

========================= ======================================================
what                      where
========================= ======================================================
what all schemes share    :mod:`~lora_registry.quantized.weight`
which scheme it is        :mod:`~lora_registry.quantized.recognition`
the tensors by name       :mod:`~lora_registry.quantized.view`
against the adapter's     :mod:`~lora_registry.quantized.agreement`
nf4, fp4                  :mod:`~lora_registry.quantized.four_bit`
int8                      :mod:`~lora_registry.quantized.int8`
GPTQ                      :mod:`~lora_registry.quantized.gptq`
AWQ                       :mod:`~lora_registry.quantized.awq`
float8                    :mod:`~lora_registry.quantized.fp8`
compressed-tensors        :mod:`~lora_registry.quantized.compressed`
GGUF                      :mod:`~lora_registry.quantized.gguf_file`
========================= ======================================================
"""
