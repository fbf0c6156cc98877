"""LoHa, LoKr and sparse changes in an audit: measured from their factors, or said not to be."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import composed_adapters as composed
import numpy as np
import pytest

from lora_registry.adapter import Adapter, Layout, Target
from lora_registry.audit import spectrum
from lora_registry.audit.engine import audit
from lora_registry.audit.measure import measure
from lora_registry.audit.report import AuditReport
from lora_registry.audit.spectrum import Spectrum, spectra
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.change import delta

SHAPES: list[tuple[tuple[int, ...], Layout | None]] = [
    ((40, 30), None),
    ((30, 40), ("in", "out")),
    ((4, 30), None),
    ((12, 8, 3), None),
    ((12, 8, 3, 2), None),
]


def dense(target: Target) -> Array:
    """The change as a matrix of outputs and inputs, in float64 of exact factors."""
    wide = {role: from_array(to_array(tensor).astype(np.float64)) for role, tensor in target.tensors.items()}
    change = delta(replace(target, tensors=wide)).astype(np.float64)
    return change.T if target.layout == ("in", "out") else change.reshape(len(change), -1)


def edited(target: Target, role: str, array: Array) -> Target:
    return replace(target, tensors={**target.tensors, role: from_array(array)})


@pytest.mark.parametrize(("shape", "layout"), SHAPES)
@pytest.mark.parametrize("make", [composed.loha, composed.lokr])
def test_agrees_with_the_dense_change(make: type, shape: tuple[int, ...], layout: Layout | None) -> None:
    """Norm and rank are those of the change itself, for matrices either way round and for kernels."""
    target = make("w", shape, layout=layout)
    change = dense(target)
    (found,) = spectra(target)
    assert found.norm == pytest.approx(np.linalg.norm(change), rel=1e-5)
    assert found.rank == np.linalg.matrix_rank(change, rtol=1e-5)  # delta() is float32
    assert found.rank <= found.limit <= min(change.shape)


def test_weak_factors_lower_the_rank() -> None:
    """A rank that is copied in one product counts once, and so do all its partners."""
    target = composed.loha("w", (40, 30))
    a = to_array(target.tensors["A1"]).copy()
    a[1] = a[0]
    (found,) = spectra(edited(target, "A1", a))
    assert (found.rank, found.limit) == (3, 6)
    target = composed.lokr("w", (40, 30))
    (found,) = spectra(edited(target, "C1", np.ones((2, 2), np.float32)))
    assert (found.rank, found.limit) == (3, 6)


def test_a_whole_side_that_is_zero_is_dead() -> None:
    """LoKr as its trainer starts it, before the first step."""
    target = edited(composed.lokr("w", (40, 30)), "C1", np.zeros((2, 2), np.float32))
    assert spectra(target) == (Spectrum(0.0, 0, 6),)
    assert measure(target).dead
    assert measure(replace(composed.lokr("w", (40, 30)), scale=0.0)).dead
    assert not measure(composed.loha("w", (40, 30))).dead


@pytest.mark.parametrize("make", [composed.loha, composed.lokr])
def test_overflow_is_infinite(make: type) -> None:
    """A scale beyond float64 is no error here."""
    (found,) = spectra(replace(make("w", (40, 30), size=1e5), scale=1e308))
    assert (found.norm, found.rank) == (inf, found.limit)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paired columns that are read in many blocks give what they give in one."""
    target = composed.loha("w", (400, 300))
    (whole,) = spectra(target)
    monkeypatch.setattr(spectrum, "_BLOCK", 64)
    (blocked,) = spectra(target)
    assert blocked.rank == whole.rank == 6
    assert blocked.norm == pytest.approx(whole.norm, rel=1e-13)


def findings(report: AuditReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.rule, []).append(f"{finding.place}: {finding.message}")
    return found


def test_what_is_not_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse changes, cores that are too large, and factors that are not finite each have a line of their own."""
    monkeypatch.setattr(spectrum, "_CORE", 5)
    broken = edited(composed.loha("c.weight", (40, 30)), "A2", np.full((3, 30), np.nan, np.float32))
    targets = (composed.sparse("a.weight", (9, 9)), composed.loha("b.weight", (40, 30)), broken)
    told = {f"{skip.what}: {skip.why}" for skip in audit(Adapter(targets=targets)).skipped}
    assert {
        "norm and rank: no factors: the sparse change of 1 target",
        "norm and rank: too many factors to look at together: LoHa or LoKr of 1 target",
        "norm and rank: not finite: the factors of 1 target",
    } <= told


def test_the_rules_on_numbers_hold_for_composed_changes() -> None:
    """Zeros by what they mean, equal factors, dtypes; and nothing to say of sound ones."""
    loha, lokr = composed.loha("a.weight", (40, 30)), composed.lokr("b.weight", (40, 30))
    sound = findings(audit(Adapter(targets=(loha, lokr, composed.sparse("c.weight", (9, 9))))))
    assert not {rule for rule in sound if rule.startswith("R") or rule < "A-010"}
    zero = np.zeros((3, 30), np.float32)
    dead = findings(audit(Adapter(targets=(edited(loha, "A2", zero), lokr))))
    assert dead["A-003"] == ["targets/a.weight/tensors/A2: is all zero"]
    dead = findings(audit(Adapter(targets=(edited(loha, "A1", zero[:2]), lokr))))
    assert dead["A-004"] == ["targets/a.weight/tensors/A1: is all zero"]
    nothing = composed.sparse("c.weight", (9, 9))
    nothing = edited(nothing, "delta", np.zeros(27, np.float32))
    assert "B, C or delta is zero in 1" in findings(audit(Adapter(targets=(nothing,))))["A-002"][0]
    copies = findings(audit(Adapter(targets=(loha, replace(loha, name="z.weight"), lokr))))
    assert copies["A-008"] == ["targets/a.weight: same A1 and A2 and B1 and B2 as z.weight"]
    half = edited(lokr, "C1", to_array(lokr.tensors["C1"]).astype(np.float16))
    assert findings(audit(Adapter(targets=(loha, half))))["A-009"] == ["targets: the factors are 6 F32, 1 F16"]


def test_positions_out_of_order_are_a_finding() -> None:
    """The audit reads the data, and leaves the numbers of a broken target alone."""
    target = composed.sparse("c.weight", (9, 9))
    broken = edited(target, "index", to_array(target.tensors["index"])[::-1])
    report = audit(Adapter(targets=(broken, composed.loha("a.weight", (40, 30)))))
    assert findings(report)["R-045"] == [
        "targets/c.weight/tensors/index: position 76 after 79: they are not ascending, or one is named twice"
    ]
    assert "numbers of c.weight" in {skip.what for skip in report.skipped}
