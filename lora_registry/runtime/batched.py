"""A batched model: one run, and each row of the batch has an adapter of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_registry.errors import NotFoundError, UnsupportedError, UsageError, refusal
from lora_registry.format.data_rules import check_data
from lora_registry.onnx.slots.manifest import IDS, SlotManifest
from lora_registry.runtime import ort
from lora_registry.runtime.slot_values import SlotValues, manifest_of
from lora_registry.runtime.sources import Source, read_source


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The adapters that are on offer: their numbers, and the stacks of their factors."""

    numbers: Mapping[str, int]
    values: SlotValues


class BatchedModel:
    """A model that ``loreg onnx slots --batched`` made, and the adapters that its rows choose from.

    Safe to run from several threads; :meth:`load` changes what runs that begin after it see.

    Args:
        model: the ``.onnx`` file.
        provider: a key of :data:`lora_registry.runtime.ort.PROVIDERS`.
        threads: threads within an operator; None for ONNX Runtime's choice.

    Raises:
        UnsupportedError: the model has no slots, or is not batched.
        NotFoundError, InvalidInputError, MachineError, MissingPackageError: see
            :func:`lora_registry.runtime.ort.open_session`.
    """

    def __init__(self, model: str | Path, *, provider: str = "cpu", threads: int | None = None) -> None:
        self.session: Any = ort.open_session(Path(model), provider=provider, threads=threads)
        self.manifest: SlotManifest = manifest_of(self.session, Path(model))
        if not self.manifest.batched:
            raise UnsupportedError(f"{model} takes one adapter for a whole run; see lora_registry.runtime.adapter_pool")
        self._provider = provider
        self._loaded = _Loaded({}, SlotValues({}, 0))
        self._owned = frozenset(value.name for value in self.session.get_overridable_initializers())

    def load(self, adapters: Mapping[str, Source]) -> None:
        """Stack the factors of ``adapters`` and upload them once; they take the place of those loaded before.

        Raises:
            LoregError: whatever :func:`lora_registry.onnx.slots.stack.stacked` raises; those loaded before stay.
        """
        from lora_registry.onnx.slots.stack import stacked

        opened = {name: read_source(source) for name, source in adapters.items()}
        for name, adapter in opened.items():
            if findings := check_data(adapter):
                raise refusal(name, findings)
        stacks = stacked(self.manifest, list(opened.values()))
        numbers = {name: number for number, name in enumerate(opened, start=1)}
        self._loaded = _Loaded(numbers, SlotValues.of(stacks, self._provider))

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that rows can choose."""
        return tuple(self._loaded.numbers)

    def run(
        self, inputs: Mapping[str, Any], adapters: Sequence[str | None], *, outputs: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Run one batch.

        Args:
            inputs: numpy arrays by input name, without the slots.
            adapters: one for each row of the batch; None is the base. A single one is that of all rows.
            outputs: names of those to compute; None for all.

        Raises:
            NotFoundError: no adapter of that name is loaded.
            UsageError: ``inputs`` fills a slot by itself, or ``adapters`` is empty.
            InvalidInputError: there are not as many ``adapters`` as rows; or see :func:`lora_registry.runtime.ort.run`.
        """
        loaded = self._loaded
        if taken := self._owned & inputs.keys():
            raise UsageError(f"{min(taken)!r} is a slot, which loading fills")
        if not adapters:
            raise UsageError("no adapter for any row; None is the base")
        unknown = [name for name in adapters if name is not None and name not in loaded.numbers]
        if unknown:
            raise NotFoundError(f"no adapter {unknown[0]!r} is loaded; there is {', '.join(loaded.numbers) or 'none'}")
        ids = np.array([0 if name is None else loaded.numbers[name] for name in adapters], np.int64)
        feeds = {**loaded.values.values, IDS: ids, **inputs}
        return ort.run(self.session, feeds, None if outputs is None else list(outputs))

    def using(self, adapters: Sequence[str | None]) -> UsingRows:
        """The model with an adapter for each row, as something that can be run like a session."""
        return UsingRows(self, tuple(adapters))


@dataclass(frozen=True, slots=True)
class UsingRows:
    """A batched model with its choice made: has what :func:`lora_registry.runtime.ort.run` asks of a session."""

    model: BatchedModel
    adapters: tuple[str | None, ...]

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """Run; outputs as a list."""
        return list(self.model.run(inputs, self.adapters, outputs=outputs).values())

    def get_inputs(self) -> Any:
        """The inputs that have to be given."""
        return self.model.session.get_inputs()

    def get_outputs(self) -> Any:
        """The outputs."""
        return self.model.session.get_outputs()
