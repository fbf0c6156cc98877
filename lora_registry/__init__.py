"""loreg: a specified file format, a registry and a merge engine for LoRA adapters.

Read in this order: ``spec/adapter-format.md``, ``adapter.py``, ``format/``, one converter, ``merge/``.
"""

__version__ = "0.1.0"
