"""What the base checkpoint, where it is at hand, says about the tensors of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from lora_registry.adapter import Target
from lora_registry.onnx.candidate import Candidate, may_hold
from lora_registry.onnx.model import OnnxModel, dtype_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.refusal import AMBIGUOUS, OTHER_VALUES, RefusalError
from lora_registry.onnx.values import carriers_of, cast, oriented, parts_of, same_values, swap
from lora_registry.ops.arrays import Array
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.prefix import Prefix, uniform_prefix

VALUE_MATCH = "value-match"
"""Id of the rule that goes by the values of the base checkpoint."""


class Evidence:
    """The base checkpoint beside its export, for the targets of one adapter."""

    def __init__(self, model: OnnxModel, names: Names, base: BaseModel, wanted: Sequence[str]) -> None:
        self._model = model
        self._known = names.exporter
        self._base = base
        stored = {**{name: name for name in base.names()}, **base.ties}
        prefix = uniform_prefix(wanted, stored) or Prefix()
        pairs = ((name, prefix.apply(name)) for name in wanted)
        self._names = {name: stored[found] for name, found in pairs if found is not None and found in stored}
        self._exported = uniform_prefix(base.names(), names.exporter)
        self._twins: dict[str, list[str]] = {}

    def tensor(self, target: Target) -> Array | None:
        """The target's tensor in the checkpoint; None where the checkpoint has none."""
        name = self._names.get(target.name)
        return None if name is None else self._base.array(name)

    def search(self, target: Target) -> list[Candidate]:
        """The initializers that hold the values of the target's tensor."""
        wanted = self.tensor(target)
        if wanted is None:
            return []
        whole = [Candidate(self._model.initializers[name]) for name, _ in carriers_of(self._model, wanted)]
        found = [candidate for candidate in whole if may_hold(target, candidate.shape)]
        if not found:
            found = [
                Candidate(self._model.initializers[name], window) for name, window in parts_of(self._model, wanted)
            ]
        for candidate in found:
            candidate.rules.add(VALUE_MATCH)
            candidate.only_extends = False
        return found

    def is_unique(self, target: Target) -> bool:
        """Whether the checkpoint shows that no other of its tensors holds the same values."""
        return target.name in self._names and not self._twins_of(target)

    def confirm(self, target: Target, candidate: Candidate) -> None:
        """Add this rule to the candidate's, if the checkpoint has the tensor.

        Raises:
            RefusalError: the checkpoint holds other values; or a second tensor with the same values, which the
                graph has lost, so that changing this one would change what the other one computed.
        """
        known = self.tensor(target)
        if known is None:
            return
        if not same_values(candidate.values(self._model), cast(known, dtype_of(candidate.value))):
            name = self._names[target.name]
            raise RefusalError(
                OTHER_VALUES, f"{candidate.place} does not hold the values of {name!r} of the base checkpoint"
            )
        for twin in self._twins_of(target):
            exported = self._exported.apply(twin) if self._exported is not None else None
            if exported not in self._known:
                raise RefusalError(
                    AMBIGUOUS, f"{twin!r} has the same values and is not in the graph: an optimizer made one of the two"
                )
        candidate.rules.add(VALUE_MATCH)

    def _twins_of(self, target: Target) -> list[str]:
        """Other tensors of the checkpoint that hold the same values as the target's, and are not tied to it."""
        name, ties = self._names[target.name], self._base.ties
        if name not in self._twins:
            array, shape = self._base.array(name), self._base.shape(name)
            self._twins[name] = [
                other
                for other in self._base.names()
                if name not in (other, ties.get(other))
                and ties.get(name) != other
                and self._base.shape(other) in (shape, swap(shape))
                and any(same_values(oriented(self._base.array(other), swapped), array) for swapped in (False, True))
            ]
        return self._twins[name]
