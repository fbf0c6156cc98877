"""The audit as a whole: a clean bill, its JSON, and what it says about what it did not see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.audit import measure as measuring
from lora_registry.audit.base import check_fit
from lora_registry.audit.engine import audit
from lora_registry.audit.measure import scan
from lora_registry.audit.report import AuditReport, Checked, Skipped
from lora_registry.convert.report import Report
from lora_registry.digest import Digest
from lora_registry.findings import Finding, Severity
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.merge.fitting.fit import fit
from lora_registry.ops.arrays import Array, from_array, numpy_dtype, to_array
from lora_registry.ops.base_model import BaseModel

FIRST = "model.layers.0.self_attn.q_proj.weight"


def with_first(adapter: Adapter, **changes: Any) -> Adapter:
    """The adapter with fields of one linear target replaced; those in ``tensors`` are put over its own."""
    first = adapter.target(FIRST)
    if "tensors" in changes:
        changes["tensors"] = {**first.tensors, **changes["tensors"]}
    others = (target for target in adapter if target.name != FIRST)
    return replace(adapter, targets=(replace(first, **changes), *others))


def what(result: AuditReport) -> list[str]:
    return [one.what for one in result.skipped]


def test_clean(
    clean: Adapter, tmp_path: Path, weights: dict[str, Array], open_weights: Callable[[dict[str, Array]], BaseModel]
) -> None:
    """A well-made adapter with its file and its base has no findings, and everything was looked at."""
    path = tmp_path / "x.loreg.safetensors"
    write_adapter(clean, path)
    adapter = read_adapter(path)
    result = audit(adapter, file_findings=check_file(path), fit=fit(adapter, open_weights(weights)))
    assert result.findings == ()
    assert result.worst is None
    assert what(result) == ["outlier norms"]  # of the three targets that have no siblings
    counts = {one.what: one.count for one in result.checked}
    assert counts["tensors"] == 2 * 21 + 1
    assert counts["elements"] == adapter.parameters
    assert counts["changes"] == 18 + 1 + 4 + 1  # one for each expert
    assert counts["families"] == 1
    assert counts["files"] == 1
    assert counts["matches with the base"] == 22
    assert counts["metadata strings"] > 22


def test_json(clean: Adapter) -> None:
    """The JSON form has the counts, the findings from bad to mild, and what was checked and skipped."""
    broken = replace(
        clean, base=replace(clean.base, name="/home/bob", revision=None), info={"title": "\x1b", "license": "MIT"}
    )
    document = json.loads(json.dumps(audit(broken).to_json()))
    assert list(document) == ["counts", "findings", "checked", "skipped"]
    assert document["counts"] == {"error": 1, "warning": 1, "note": 1}
    assert [finding["rule"] for finding in document["findings"]] == ["A-031", "A-032", "A-021"]
    assert all(set(finding) == {"rule", "severity", "place", "message"} for finding in document["findings"])
    assert all(set(one) == {"what", "count", "how"} for one in document["checked"])
    assert all(set(one) == {"what", "why"} for one in document["skipped"])


def test_not_checked_is_said(clean: Adapter) -> None:
    """No file, no base: both are named as not checked, and the source where it is known."""
    alone = audit(clean)
    assert {"framing of the file, R-001 to R-012", "fit to the base"} <= set(what(alone))
    converted = audit(clean, report=Report("peft"))
    assert "framing of the file, R-001 to R-012: the adapter was converted from peft" in map(str, converted.skipped)


def test_structure_of_an_adapter_from_anywhere(clean: Adapter) -> None:
    """The format's rules are run on the adapter itself; what they break is not measured, and that is said."""
    result = audit(with_first(clean, tensors={"A": from_array(np.ones((9, 9), np.float32))}))
    assert {finding.rule for finding in result.findings} == {"R-029"}
    assert f"numbers of {FIRST}" in what(result)
    assert {one.what: one.count for one in result.checked}["elements"] < clean.parameters


def test_digest_that_lies(clean: Adapter) -> None:
    """Bytes that do not have the stated digest are an error, and their numbers are still looked at."""
    result = audit(with_first(clean, digests={"A": Digest.of(b"")}))
    assert [finding.rule for finding in result.findings] == ["R-035"]
    assert {one.what: one.count for one in result.checked}["elements"] == clean.parameters


def test_findings_of_the_file_are_kept_once(clean: Adapter) -> None:
    """What the file's check found is in the report; what both checks found is there once."""
    adapter = with_first(clean, digests={"A": Digest.of(b"")})
    (twice,) = audit(adapter).findings
    hole = Finding("R-008", "header", "leaves a hole")
    assert audit(adapter, file_findings=[hole, twice]).findings == (hole, twice)


def test_nothing_is_decided_while_a_target_is_unread(clean: Adapter) -> None:
    """An adapter of which one target could not be measured is not said to do nothing."""
    empty = replace(clean, targets=tuple(replace(target, scale=0.0) for target in clean))
    part = audit(with_first(empty, tensors={"A": from_array(np.ones((9, 9), np.float32))}))
    assert "A-002" in {finding.rule for finding in audit(empty).findings}
    assert "A-002" not in {finding.rule for finding in part.findings}


def test_nothing_is_said_once(clean: Adapter) -> None:
    """An adapter that does nothing gets one finding with the reasons, in place of one for each target."""
    empty = replace(clean, targets=tuple(replace(target, scale=0.0) for target in clean))
    zero = from_array(np.zeros((12, 3), np.float32))
    (finding,) = audit(with_first(empty, tensors={"B": zero})).findings
    reasons = "B, C or delta is zero in 1, the scale is zero in 22"
    assert str(finding) == f"A-002 at targets: 22 targets, and all leave the base as it is: {reasons}"


def test_nan_leaves_the_rank_open(clean: Adapter) -> None:
    """Factors that are not finite have no rank and no norm, and the report says that it is open."""
    values = to_array(clean.target(FIRST).tensors["A"]).copy()
    values[0, :2] = np.inf, np.nan
    result = audit(with_first(clean, tensors={"A": from_array(values)}))
    (finding,) = result.findings
    assert str(finding) == f"A-001 at targets/{FIRST}/tensors/A: 2 of 30 elements are NaN or infinite"
    assert "norm and rank" in what(result)


def test_magnitude_is_not_nothing(clean: Adapter) -> None:
    """A magnitude can change the base where B is zero: that depends on the base, so it is said to be open."""
    zero, magnitude = from_array(np.zeros((12, 3), np.float32)), from_array(np.ones(12, np.float32))
    adapter = with_first(clean, tensors={"B": zero, "magnitude": magnitude})
    result = audit(replace(adapter, targets=(adapter.target(FIRST),)))
    assert [finding.rule for finding in result.findings] == ["A-003"]
    assert "size of the change" in what(result)


def test_ranks_are_summed_up(clean: Adapter) -> None:
    """Many targets below their rank are one finding, with the worst first."""
    worst = "model.layers.3.self_attn.q_proj.weight"

    def lowered(target: Target) -> Target:
        a = to_array(target.tensors["A"]).copy() if target.kind is Kind.LINEAR else None
        if a is None:
            return target
        a[1] = a[0]
        if target.name == worst:
            a[2] = -a[0]
        return replace(target, tensors={**target.tensors, "A": from_array(a)})

    (finding,) = audit(replace(clean, targets=tuple(map(lowered, clean.targets)))).findings
    assert finding.rule == "A-006"
    assert finding.message.startswith(f"19 of 21 changes use less than their rank, worst first: 1 of 3 in {worst}, ")
    assert finding.message.endswith("and 15 more")


def test_whole_tensors_are_weighed(clean: Adapter) -> None:
    """Tensors that replace the base's are given in bytes and as a share of the adapter."""
    value = from_array(np.ones((5, 7), np.float32))
    whole = Target(name="score.weight", kind=Kind.FULL, layout=(), shape=(5, 7), tensors={"value": value})
    adapter = replace(clean, targets=(whole,))
    (finding,) = (finding for finding in audit(adapter).findings if finding.rule == "A-010")
    assert finding.message == "140 bytes in 1 tensor, 100 % of the adapter, largest first: score.weight"


def test_progress(clean: Adapter) -> None:
    """Progress counts targets, from none to all."""
    calls: list[tuple[int, int]] = []
    audit(clean, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 22) for done in range(23)]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_scan_reads_every_block(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the last block is seen, in every dtype."""
    monkeypatch.setattr(measuring, "_BLOCK", 8)
    values = np.zeros((3, 7)).astype(numpy_dtype(dtype))
    assert scan(from_array(values)).zero
    values[2, 6] = 0.5
    assert not scan(from_array(values)).zero
    values[2, 5] = np.nan
    assert scan(from_array(values)).nonfinite == 1


def test_integers_are_never_infinite() -> None:
    """A whole tensor of integers is scanned like any other."""
    values = np.full((4,), np.iinfo(np.int64).max)
    assert (scan(from_array(values)).nonfinite, scan(from_array(values)).zero) == (0, False)


def test_findings_of_the_fit_are_kept(
    clean: Adapter, weights: dict[str, Array], open_weights: Callable[[dict[str, Array]], BaseModel]
) -> None:
    """Beside the verdict stands what the comparison found, target by target."""
    result = audit(clean, fit=fit(clean, open_weights({**weights, FIRST: weights[FIRST] * 2})))
    assert [(finding.rule, finding.place) for finding in result.findings] == [("A-041", "base"), ("M-004", FIRST)]


def test_unknown_verdict(clean: Adapter) -> None:
    """A verdict that the audit does not know is a mistake of the caller, never a pass."""

    @dataclass(frozen=True)
    class Odd:
        verdict: str
        matches: Mapping[str, str]
        findings: tuple[Finding, ...]

    with pytest.raises(ValueError, match="perhaps"):
        list(check_fit(clean, Odd("perhaps", {}, ())))


def test_summary() -> None:
    """One line counts what was found, and what was left open."""
    error, note = Finding("R-001", "", "x"), Finding("A-012", "", "y", Severity.NOTE)
    none = AuditReport.of([], [Checked("tensors", 1, "x")], [])
    assert none.summary == "no findings"
    assert AuditReport.of([note, error, note], [], []).findings == (error, note)
    both = AuditReport.of([error, error, note], [], [Skipped("fit to the base", "none given")])
    assert both.summary == "1 error, 1 note; 1 check could not be made"


def test_rules_need_no_numpy() -> None:
    """Listing the rules imports nothing heavy."""
    code = "import sys, lora_registry.audit.rules; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
