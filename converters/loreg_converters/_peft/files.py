"""What PEFT calls the files of an adapter (``utils/constants.py`` of 0.21.2)."""

from __future__ import annotations

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
