"""Why a target cannot be resolved: one id for each reason, which is the rule of the finding that users see."""

from __future__ import annotations

NOT_FOUND = "O-001"  # no initializer holds the tensor
DISAGREE = "O-002"  # two rules point at different values
QUANTIZED = "O-003"  # the tensor is there, in a quantized form
OPAQUE = "O-004"  # an operator reads it in a way that is not understood
SHAPE = "O-005"  # it has another shape than the adapter says
AMBIGUOUS = "O-006"  # nothing tells which uses are the target's
TIED = "O-007"  # it has two roles, and the policy forbids that
COMPUTED = "O-008"  # an optimizer folded it together with other tensors
OTHER_VALUES = "O-009"  # the base checkpoint holds other values

UNSUPPORTED = frozenset({QUANTIZED, OPAQUE, COMPUTED})
"""Reasons that lie in what loreg can do, not in the files."""


class RefusalError(Exception):
    """One target cannot be resolved; :func:`lora_registry.onnx.resolve.resolve` makes a finding of it.

    Args:
        rule: one of the ids above.
        message: one sentence about the target, without its name.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
