"""Many adapters in memory, one session: each request says which one is on.

ONNX Runtime's own way (``LoraAdapter``, ``RunOptions.add_active_adapter``; 1.32) loses adapters in silence: where the
Python object is collected before the run, where inputs are bound, where two of them have an input in common. Here the
factors are ordinary inputs: uploaded once, held as long as a run needs them, and checked against the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np

from lora_registry.errors import ConflictError, NotFoundError, UnsupportedError, UsageError
from lora_registry.onnx.slots.manifest import SCALE, SlotManifest
from lora_registry.runtime import ort
from lora_registry.runtime.slot_values import SlotValues, arrays_of, manifest_of, overlap
from lora_registry.runtime.sources import Source

Active: TypeAlias = "str | Sequence[str] | None"
"""Which adapter is on: one by name, several with no slot in common, or none."""

CAPACITY = 1 << 30
"""Bytes of factors that a pool keeps, where nothing else is said."""

_LARGEST = float(np.finfo(np.float32).max)  # the input is F32, where more is infinity


@dataclass(slots=True)
class _Entry:
    """One adapter: where it comes from, and its factors while they are in memory."""

    source: Source
    loading: Lock = field(default_factory=Lock)
    values: SlotValues | None = None


class AdapterPool:
    """A switchable model and its adapters. Safe to use from several threads.

    Args:
        model: what ``loreg onnx slots`` made.
        provider: a key of :data:`lora_registry.runtime.ort.PROVIDERS`; it runs there, or there is no pool.
        threads: threads within an operator; None for ONNX Runtime's choice.
        capacity: bytes of factors to keep. Those that were used least recently make room, and are read again when
            they are asked for.

    Raises:
        UnsupportedError: the model has no slots, or is batched.
        NotFoundError, InvalidInputError, MachineError, MissingPackageError: see
            :func:`lora_registry.runtime.ort.open_session`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self.session: Any = ort.open_session(Path(model), provider=provider, threads=threads)
        self.manifest: SlotManifest = manifest_of(self.session, Path(model))
        if self.manifest.batched:
            raise UnsupportedError(f"{model} is batched; see lora_registry.runtime.batched")
        self._provider = provider
        self._capacity = capacity
        self._entries: dict[str, _Entry] = {}
        self._used: OrderedDict[str, SlotValues] = OrderedDict()  # in memory, the least recently used first
        self._lock = Lock()
        self._owned = frozenset(value.name for value in self.session.get_overridable_initializers())

    # -- which adapters there are ---------------------------------------------------------------------------

    def add(self, name: str, source: Source) -> None:
        """Read an adapter, check it against the model, and keep it under ``name``.

        Args:
            name: as requests say it.
            source: an ``.onnx_adapter`` file for this model, or an adapter in any other form.

        Raises:
            ConflictError: the name is taken.
            UsageError: the factors alone are larger than the pool.
            LoregError: whatever :func:`lora_registry.runtime.slot_values.arrays_of` raises.
        """
        entry = _Entry(source)
        with self._lock:
            if name in self._entries:
                raise ConflictError(f"the pool has an adapter {name!r}")
            self._entries[name] = entry
        try:
            self._values(name)
        except BaseException:
            with self._lock:
                self._entries.pop(name, None)
            raise

    def remove(self, name: str) -> None:
        """Forget an adapter; runs that are under way keep its factors to their end.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._lock:
            if self._entries.pop(name, None) is None:
                raise NotFoundError(f"the pool has no adapter {name!r}")
            self._used.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter, in memory or not."""
        with self._lock:
            return tuple(self._entries)

    @property
    def resident(self) -> tuple[str, ...]:
        """Those in memory, the least recently used first."""
        with self._lock:
            return tuple(self._used)

    @property
    def nbytes(self) -> int:
        """Bytes of factors in memory."""
        with self._lock:
            return self._total()

    # -- requests -------------------------------------------------------------------------------------------

    def run(
        self,
        inputs: Mapping[str, Any],
        adapter: Active = None,
        *,
        scale: float = 1.0,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Run the model with an adapter, or several, or none.

        Args:
            inputs: numpy arrays or ``OrtValue`` by input name, without the slots.
            adapter: which are on.
            scale: multiplies their changes.
            outputs: names of those to compute; None for all.

        Raises:
            NotFoundError: no adapter of that name.
            ConflictError: two adapters have a slot in common.
            UsageError: ``inputs`` fills a slot by itself, or ``scale`` is no finite number in F32.
            InvalidInputError, UnsupportedError: see :func:`lora_registry.runtime.ort.run`.
        """
        if taken := self._owned & inputs.keys():
            raise UsageError(f"{min(taken)!r} is a slot, which the pool fills")
        feeds = {**self.feeds(adapter, scale=scale), **inputs}
        return ort.run(self.session, feeds, None if outputs is None else list(outputs))

    def feeds(self, adapter: Active, *, scale: float = 1.0) -> dict[str, Any]:
        """The inputs that switch adapters on, for a run of one's own: ``OrtValue`` by name.

        Raises:
            NotFoundError, ConflictError, UsageError: see :meth:`run`.
        """
        if not abs(scale) <= _LARGEST:  # so that NaN is none of them
            raise UsageError(f"the scale {scale} is no finite number in F32")
        names = () if adapter is None else (adapter,) if isinstance(adapter, str) else tuple(adapter)
        parts = [(name, self._values(name).values) for name in names]
        clash = overlap(parts)
        if clash is not None:
            one, other, slot = clash
            raise ConflictError(f"{one!r} and {other!r} both fill {slot!r}: merge or combine them instead")
        feeds = {name: value for _, values in parts for name, value in values.items()}
        if names and scale != 1:
            feeds[SCALE] = ort.value_of(np.array(scale, np.float32))
        return feeds

    def bind(self, binding: Any, adapter: Active, *, scale: float = 1.0) -> None:
        """Bind adapters to an ``IOBinding`` of :attr:`session`; what was bound to other slots before is cleared.

        ONNX Runtime's own active adapters have no effect on a bound run.

        Args:
            binding: from ``pool.session.io_binding()``. It keeps the factors. All its inputs are cleared, so bind
                those of the model after this.
            adapter: which are on.
            scale: multiplies their changes.

        Raises:
            NotFoundError, ConflictError, UsageError: see :meth:`run`.
        """
        feeds = self.feeds(adapter, scale=scale)
        binding.clear_binding_inputs()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)

    def using(self, adapter: Active, *, scale: float = 1.0) -> Using:
        """The model with an adapter as something that can be run like a session, by :func:`generate` for one."""
        return Using(self, adapter, scale)

    # -- memory ---------------------------------------------------------------------------------------------

    def _values(self, name: str) -> SlotValues:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                known = ", ".join(sorted(self._entries)) or "none"
                raise NotFoundError(f"the pool has no adapter {name!r}; it has {known}")
            known_values = self._used.get(name)
            if known_values is not None:
                self._used.move_to_end(name)
                return known_values
        with entry.loading:  # two requests for one adapter read it once; requests for others do not wait
            values = entry.values
            if values is None:
                values = SlotValues.of(arrays_of(self.manifest, entry.source), self._provider)
                if values.nbytes > self._capacity:
                    raise UsageError(f"{name!r} takes {values.nbytes} bytes, the pool keeps {self._capacity}")
            self._keep(name, entry, values)
        return values

    def _keep(self, name: str, entry: _Entry, values: SlotValues) -> None:
        with self._lock:
            if self._entries.get(name) is not entry:
                return  # removed meanwhile
            entry.values = values
            self._used[name] = values
            self._used.move_to_end(name)
            while self._total() > self._capacity:
                evicted, _ = self._used.popitem(last=False)
                self._entries[evicted].values = None

    def _total(self) -> int:
        return sum(values.nbytes for values in self._used.values())


@dataclass(frozen=True, slots=True)
class Using:
    """A pool with its choice made: has what :func:`lora_registry.runtime.ort.run` asks of a session."""

    pool: AdapterPool
    adapter: Active
    scale: float = 1.0

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Any]) -> list[Any]:
        """Run; outputs as a list."""
        return list(self.pool.run(inputs, self.adapter, scale=self.scale, outputs=outputs).values())

    def get_inputs(self) -> Any:
        """The inputs that have to be given."""
        return self.pool.session.get_inputs()

    def get_outputs(self) -> Any:
        """The outputs."""
        return self.pool.session.get_outputs()
