"""Trained rows of an embedding (``trainable_token_indices``).

What PEFT calls a delta holds the rows themselves: ``TrainableTokensLayer`` copies them over the embedding's.
The row numbers are in the config only.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.convert.report import Report
from lora_registry.dtypes import DTYPES
from lora_registry.findings import Finding
from loreg_converters._peft.config import Config
from loreg_converters._peft.problems import broken


def token_targets(
    tokens: Mapping[str, Tensor], values: dict[str, Tensor], config: Config, report: Report
) -> tuple[list[Target], list[Finding]]:
    """One target for each embedding with trained rows.

    A resized embedding is saved whole beside its rows; there the rows are written into a copy, which
    takes the place of both in ``values``.
    """
    targets: list[Target] = []
    findings: list[Finding] = []
    for module, trained in tokens.items():
        rows = rows_of(module, config)
        problem = _problem(rows, trained)
        if problem or rows is None:
            findings.append(broken(module, problem))
            continue
        name = f"{module}.weight"
        if name in values:
            findings += _into(values, name, rows, trained)
            report.derived(name, f"the saved embedding with its {len(rows)} trained rows written into it")
            continue
        tensor = trained
        if list(rows) != sorted(rows):
            tensor = rearranged(trained, sorted(range(len(rows)), key=rows.__getitem__))
            report.kept(name, "the trained rows in ascending order, not in that of the config")
        ascending = tuple(sorted(rows))
        targets.append(
            Target(
                name=name, kind=Kind.TOKENS, layout=("in", "out"), shape=None, tensors={"value": tensor}, rows=ascending
            )
        )
    return targets, findings


def rows_of(module: str, config: Config) -> tuple[int, ...] | None:
    """The row numbers that the config gives an embedding.

    A bare list is for the input embedding, and for the output embedding where the two are tied (PEFT 0.21.2,
    ``set_additional_trainable_modules``).
    """
    match config.token_indices:
        case None:
            return None
        case tuple() as rows:
            return rows
        case by_name:
            return next((rows for name, rows in by_name.items() if module.endswith(name)), None)


def _problem(rows: tuple[int, ...] | None, tensor: Tensor) -> str:
    if rows is None:
        return "has trained rows, but trainable_token_indices does not name it"
    if len(tensor.shape) != 2 or tensor.shape[0] != len(rows):
        return f"trained rows of shape {list(tensor.shape)} for {len(rows)} row numbers"
    if len(set(rows)) != len(rows):
        return "names a row twice in trainable_token_indices"
    return ""


def rearranged(tensor: Tensor, order: list[int]) -> Tensor:
    """The rows of a matrix in another order."""
    width = tensor.nbytes // tensor.shape[0]
    data = b"".join(bytes(tensor.data[row * width : (row + 1) * width]) for row in order)
    return Tensor(tensor.dtype, tensor.shape, data)


def _into(values: dict[str, Tensor], name: str, rows: tuple[int, ...], tensor: Tensor) -> list[Finding]:
    whole = values[name]
    if whole.dtype != tensor.dtype or len(whole.shape) != 2 or whole.shape[1] != tensor.shape[1]:
        return [broken(name, f"rows {tensor.dtype} {list(tensor.shape)} for {whole.dtype} {list(whole.shape)}")]
    if max(rows) >= whole.shape[0]:
        return [broken(name, f"row {max(rows)} is beyond the {whole.shape[0]} rows of the embedding")]
    unsigned = f"u{DTYPES[whole.dtype].size}"
    array = np.frombuffer(whole.data, dtype=unsigned, count=prod(whole.shape)).reshape(whole.shape).copy()
    array[list(rows)] = np.frombuffer(tensor.data, dtype=unsigned).reshape(tensor.shape)
    values[name] = Tensor(whole.dtype, whole.shape, array.tobytes())
    return []
