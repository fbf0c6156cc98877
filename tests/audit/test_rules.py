"""Every audit rule with a case that breaks it and a case that comes close and does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.audit.engine import audit
from lora_registry.audit.rules import RULES, found
from lora_registry.convert.report import Report
from lora_registry.findings import Severity
from lora_registry.merge.fitting.fit import fit
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.base_model import BaseModel

PAGE = Path(__file__).parents[2] / "spec" / "audit-rules.md"
FIRST = "model.layers.0.self_attn.q_proj.weight"
SECOND = "model.layers.1.self_attn.q_proj.weight"
BIAS = "model.layers.0.mlp.c_fc.bias"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"

Change = Callable[[Adapter], Adapter]
Weights = dict[str, Array]


def edited(name: str, **changes: Any) -> Change:
    """The adapter with the fields of one target replaced."""
    return lambda adapter: replace(
        adapter,
        targets=tuple(replace(target, **changes) if target.name == name else target for target in adapter),
    )


def edited_tensor(name: str, role: str, change: Callable[[Array], Array]) -> Change:
    """The adapter with one tensor changed; the rest of its target stays."""

    def apply(adapter: Adapter) -> Adapter:
        tensors = adapter.target(name).tensors
        return edited(name, tensors={**tensors, role: from_array(change(to_array(tensors[role]).copy()))})(adapter)

    return apply


def every_target(change: Callable[[Target], Target]) -> Change:
    return lambda adapter: replace(adapter, targets=tuple(change(target) for target in adapter))


def added(target: Target) -> Change:
    return lambda adapter: replace(adapter, targets=(*adapter.targets, target))


def chained(*changes: Change) -> Change:
    def apply(adapter: Adapter) -> Adapter:
        for change in changes:
            adapter = change(adapter)
        return adapter

    return apply


def based(**changes: Any) -> Change:
    return lambda adapter: replace(adapter, base=replace(adapter.base, **changes))


def informed(**fields: Any) -> Change:
    return lambda adapter: replace(adapter, info={**adapter.info, **fields})


def configured(**fields: Any) -> Change:
    """The adapter with fields added to the foreign configuration that it remembers."""

    def apply(adapter: Adapter) -> Adapter:
        config = adapter.origin["config"]
        assert isinstance(config, dict)
        return replace(adapter, origin={**adapter.origin, "config": {**config, **fields}})

    return apply


def zeros(array: Array) -> Array:
    return np.zeros_like(array)


def one_element(value: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array.reshape(-1)[0] = value
        return array

    return change


def without(role: str) -> Callable[[Target], Target]:
    """Every factor, or delta, of that role as zeros."""

    def change(target: Target) -> Target:
        emptied = {
            name: Tensor(tensor.dtype, tensor.shape, bytes(tensor.nbytes)) if name in (role, "delta") else tensor
            for name, tensor in target.tensors.items()
        }
        return replace(target, tensors=emptied)

    return change


def copied_rank(array: Array) -> Array:
    """The last row made a multiple of the first: one rank less in exact arithmetic."""
    array[-1] = 2 * array[0]
    return array


def full(name: str, *shape: int) -> Target:
    value = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return Target(
        name=name,
        kind=Kind.FULL,
        layout=(),
        shape=shape,
        tensors={"value": from_array(value)},
        fingerprint=from_array(value).digest(),
    )


def linear(name: str) -> Target:
    random = np.random.default_rng(4)
    factors = {"A": random.normal(size=(2, 6)), "B": random.normal(size=(5, 2))}
    tensors = {role: from_array(array.astype(np.float32)) for role, array in factors.items()}
    return Target(
        name=name,
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(5, 6),
        tensors=tensors,
        scale=1.0,
        fingerprint=tensors["A"].digest(),
    )


def lost(*subjects: str) -> Report:
    report = Report("peft")
    report.kept("r", "as it was")
    for subject in subjects:
        report.dropped(subject, "has no place")
    return report


@dataclass(frozen=True)
class Case:
    """How to break one rule, and how to come close without breaking it. None: the clean adapter as it is."""

    broken: Change | None = None
    near: Change | None = None
    broken_with: Mapping[str, Any] | None = None
    near_with: Mapping[str, Any] | None = None
    broken_base: Callable[[Weights], Weights] | None = None
    near_base: Callable[[Weights], Weights] | None = None


def same(weights: Weights) -> Weights:
    return weights


TOKEN = "hf_" + "a1B2" * 9  # put together here, so that no scanner of repositories takes it for one
NO_FINGERPRINTS = every_target(lambda target: replace(target, fingerprint=None))

CASES: Mapping[str, Case] = {
    "A-001": Case(edited_tensor(FIRST, "B", one_element(np.nan)), edited_tensor(FIRST, "B", one_element(3e38))),
    "A-002": Case(
        every_target(without("B")),
        chained(every_target(without("B")), edited_tensor(BIAS, "delta", one_element(1e-30))),
    ),
    "A-003": Case(edited_tensor(FIRST, "B", zeros), edited_tensor(FIRST, "A", zeros)),
    "A-004": Case(edited_tensor(FIRST, "A", zeros), edited_tensor(FIRST, "B", zeros)),
    "A-005": Case(edited(FIRST, scale=0.0), edited(FIRST, scale=-1e-300)),
    "A-006": Case(
        edited_tensor(FIRST, "A", copied_rank),
        edited_tensor(FIRST, "A", lambda array: one_element(array[0, 0] * 1.001)(copied_rank(array))),
    ),
    "A-007": Case(edited(FIRST, scale=2000.0), edited(FIRST, scale=3.0)),
    "A-008": Case(
        lambda adapter: edited(SECOND, tensors=adapter.target(FIRST).tensors)(adapter),
        lambda adapter: edited(
            SECOND, tensors={"A": adapter.target(FIRST).tensors["A"], "B": adapter.target(SECOND).tensors["B"]}
        )(adapter),
    ),
    "A-009": Case(
        edited_tensor(FIRST, "A", lambda array: array.astype(np.float16)),
        edited_tensor(BIAS, "delta", lambda array: array.astype(np.float16)),
    ),
    "A-010": Case(added(full("classifier.weight", 3, 4))),
    "A-011": Case(added(linear("lm_head.weight")), added(linear("model.layers.0.shared_experts.weight"))),
    "A-012": Case(
        added(linear("model.layers.0.mlp.gate.weight")), added(linear("model.layers.0.mlp.gate_proj.weight"))
    ),
    "A-020": Case(based(name=None), based(name="x")),
    "A-021": Case(based(revision=None), based(revision="main")),
    "A-022": Case(based(license=" "), based(license="LicenseRef-llama3.2")),
    "A-023": Case(lambda adapter: replace(adapter, info={"title": "Tone"}), informed(license="MIT OR Apache-2.0")),
    "A-024": Case(based(license="llama3.2"), based(license="LicenseRef-llama3.2")),
    "A-025": Case(
        lambda adapter: replace(adapter, origin={"format": "peft", "config": {"r": 3, "lora_alpha": None}}),
        lambda adapter: replace(adapter, origin={"format": "mlx", "config": {"lora_parameters": {"scale": 20.0}}}),
    ),
    "A-026": Case(edited(FIRST, fingerprint=None)),
    "A-027": Case(broken_with={"report": lost("lora_dropout")}, near_with={"report": lost()}),
    "A-030": Case(configured(note=f"downloaded with {TOKEN}"), configured(note=TOKEN[:20], pad_token="<|endoftext|>")),
    "A-031": Case(informed(title="Tone\x1b[2J"), informed(title="Tone\n\tüber — 日本語 🎉\r\n")),
    "A-032": Case(based(name="/home/bob/models/llama"), configured(url="https://example.org/home/bob/llama")),
    "A-033": Case(configured(note="ask bob@example.org"), configured(note="git@github.com:owner/name at 5 @ once")),
    "A-034": Case(configured(hostname="gpu-17"), configured(host="gpu-17", hostname="")),
    "A-040": Case(
        broken_base=lambda weights: {name: array for name, array in weights.items() if name != FIRST}, near_base=same
    ),
    "A-041": Case(
        broken_base=lambda weights: {**weights, FIRST: weights[FIRST] + 1},
        near_base=lambda weights: {**weights, "other.weight": weights[FIRST] + 1},
    ),
    "A-042": Case(NO_FINGERPRINTS, broken_base=same, near_base=same),
}
"""Rule id to its cases; a rule without an entry fails the test below."""


def rules_found(
    adapter: Adapter,
    change: Change | None,
    options: Mapping[str, Any] | None,
    base: BaseModel | None,
) -> set[str]:
    adapter = adapter if change is None else change(adapter)
    compared = None if base is None else fit(adapter, base)
    return {finding.rule for finding in audit(adapter, fit=compared, **(options or {})).findings}


@pytest.mark.parametrize("rule", CASES)
def test_broken(rule: str, clean: Adapter, weights: Weights, open_weights: Callable[[Weights], BaseModel]) -> None:
    """The adapter that breaks the rule gets a finding of it."""
    case = CASES[rule]
    base = open_weights(case.broken_base(weights)) if case.broken_base else None
    assert rule in rules_found(clean, case.broken, case.broken_with, base)


@pytest.mark.parametrize("rule", CASES)
def test_near(rule: str, clean: Adapter, weights: Weights, open_weights: Callable[[Weights], BaseModel]) -> None:
    """The adapter that comes close gets none."""
    case = CASES[rule]
    base = open_weights(case.near_base(weights)) if case.near_base else None
    assert rule not in rules_found(clean, case.near, case.near_with, base)


def test_data_cases_and_page_agree() -> None:
    """The rules as data, the cases of this file and the page of the specification are the same set."""
    line = r"\*\*(A-\d{3})\*\* · (\w+) · (.+)\n- Why: (.+)\n- Mend: (.+)\n"
    page = re.findall(line, PAGE.read_text(encoding="utf-8"))
    data = [(rule.id, rule.severity.value, rule.title, rule.why, rule.mend) for rule in RULES.values()]
    assert page == data
    assert list(CASES) == list(RULES)


def test_ids() -> None:
    """Ids are well-formed, unique and ascending, and every rule says what, why and how to mend it."""
    assert list(RULES) == sorted(set(RULES))
    for identity, rule in RULES.items():
        assert identity == rule.id
        assert re.fullmatch(r"A-\d{3}", rule.id)
        assert not rule.title.endswith(".")
        assert rule.why.endswith(".")
        assert rule.mend.endswith(".")


def test_found_has_the_severity_of_its_rule() -> None:
    """A finding takes its severity from the rule, and an unknown rule is a mistake of the programmer."""
    assert found("A-030", "info", "x").severity is Severity.ERROR
    assert found("A-012", "targets", "x").severity is Severity.NOTE
    with pytest.raises(KeyError):
        found("A-999", "", "")


def test_missing_everything() -> None:
    """An adapter with nothing recorded gets every provenance rule, and no error for it."""
    bare = Adapter(targets=(replace(linear("h.0.weight"), fingerprint=None),), base=Base())
    result = audit(bare)
    assert {finding.rule for finding in result.findings} == {"A-020", "A-021", "A-022", "A-023", "A-025", "A-026"}
    assert result.worst is Severity.WARNING
