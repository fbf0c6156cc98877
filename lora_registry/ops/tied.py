"""What a merge does to tied tensors: two names, or two uses, of one set of values (``spec/merging.md``, section 3)."""

from __future__ import annotations

from typing import Literal, TypeAlias

TiedPolicy: TypeAlias = Literal["untie", "both", "error"]
"""What happens where an adapter changes one of two tied tensors: ``untie`` gives each its own values, which is
what the unmerged adapter means; ``both`` changes both, which is what PEFT's ``merge_and_unload()`` does;
``error`` refuses."""
