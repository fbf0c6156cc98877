"""What one rule says: this initializer, or this part of it, holds that tensor."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lora_registry.onnx.window import Window


@dataclass(frozen=True, slots=True)
class Hit:
    """One rule's claim that an initializer holds a tensor.

    Attributes:
        rule: id of the rule.
        value: the initializer.
        transposed: whether it holds the tensor with its two last axes swapped; None where the rule cannot tell.
        only_extends: the claim counts only for an initializer with the same values as one that another claim names.
        window: the part of the initializer that is meant; None where it is all of it.
    """

    rule: str
    value: ir.Value
    transposed: bool | None = None
    only_extends: bool = False
    window: Window | None = None
