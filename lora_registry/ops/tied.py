"""What a merge does to tied tensors: two names, or two uses, of one set of values (``spec/merging.md``, section 3)."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from lora_registry.adapter import Kind, Target
from lora_registry.errors import UsageError

TiedPolicy: TypeAlias = Literal["untie", "both", "error"]
"""What happens where an adapter changes one of two tied tensors: ``untie`` gives each its own values, which is
what the unmerged adapter means; ``both`` changes both, which is what PEFT's ``merge_and_unload()`` does;
``error`` refuses."""


def policy_for(target: Target, tied: TiedPolicy) -> TiedPolicy:
    """The policy for one target: new rows of tokens are new for the input and the output alike (P-008)."""
    return "both" if target.kind is Kind.TOKENS else tied


def check_policy(tied: str) -> None:
    """Refuse a policy that is none: untyped callers would get the default in silence.

    Raises:
        UsageError: names the policies there are.
    """
    if tied not in get_args(TiedPolicy):
        raise UsageError(f"no policy {tied!r} for tied tensors; there is {', '.join(get_args(TiedPolicy))}")
