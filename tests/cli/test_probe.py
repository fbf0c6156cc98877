"""``loreg probe``: the certificate of an adapter of any format, and whether two of them make the same change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from loreg_converters.peft import converter

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.cli import main
from lora_registry.format.writer import write_adapter
from lora_registry.ops.arrays import from_array

Run = Callable[..., Result]

A = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((6, 2)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run loreg in a folder of its own with a registry of its own."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def adapter(*, scale: float = 2.0, baked: float = 1.0, prefix: str = "", targets: int = 2) -> Adapter:
    """``targets`` layers with a change of ``scale``, of which ``baked`` is a factor in B."""
    tensors = {"A": from_array(A), "B": from_array(B * np.float32(baked))}
    return Adapter(
        targets=tuple(
            Target(
                name=f"{prefix}model.layers.{layer}.self_attn.q_proj.weight",
                kind=Kind.LINEAR,
                layout=("out", "in"),
                shape=(6, 4),
                scale=scale / baked * (1 + layer),
                tensors=tensors,
            )
            for layer in range(targets)
        )
    )


@pytest.fixture
def native(tmp_path: Path) -> Callable[..., Path]:
    """Write an adapter to a native file of the given stem."""

    def write(stem: str, made: Adapter) -> Path:
        path = tmp_path / f"{stem}.loreg.safetensors"
        write_adapter(made, path)
        return path

    return write


def test_the_certificate_of_a_file_a_folder_and_a_reference_is_one(
    run: Run, native: Callable[..., Path], tmp_path: Path
) -> None:
    """The same eight numbers for each target, and the whole of it as JSON."""
    path = native("one", adapter(targets=1))
    converter.write(adapter(targets=1), tmp_path / "peft")
    assert run("push", path, "team/one:1").exit_code == 0
    shown = [json.loads(run("probe", source, "--json").stdout) for source in (path, tmp_path / "peft", "team/one:1")]
    assert shown[0]["targets"] == shown[1]["targets"] == shown[2]["targets"]
    [(name, components)] = shown[0]["targets"].items()
    assert name == "model.layers.0.self_attn.q_proj.weight"
    assert list(components) == ["change"]
    assert len(components["change"]) == 8


def test_people_get_a_table(run: Run, native: Callable[..., Path]) -> None:
    """A line for each component of each target, in a pipe with tabs."""
    head, first, second = run("probe", native("one", adapter())).stdout.splitlines()
    assert head.split("\t") == ["target", "component", *(f"p{index}" for index in range(8))]
    assert first.split("\t")[:2] == ["model.layers.0.self_attn.q_proj.weight", "change"]
    numbers = [[float(cell) for cell in line.split("\t")[2:]] for line in (first, second)]
    assert np.allclose(np.array(numbers[1]), 2 * np.array(numbers[0]), rtol=1e-4)


def test_the_same_change_in_other_bytes_exits_with_0(run: Run, native: Callable[..., Path]) -> None:
    """The scale in B instead: the same change, and within which tolerance (P-052)."""
    result = run("probe", native("one", adapter()), native("other", adapter(baked=2.0)))
    assert (result.exit_code, result.stdout) == (0, "the same change: 2 targets, within 1e-06\n")


def test_another_change_exits_with_1_and_names_the_worst_first(run: Run, native: Callable[..., Path]) -> None:
    """What only one of them changes, then by the size of the difference; then the tolerance."""
    one = adapter(targets=4)
    scales = {1: 1.001, 2: 1.5}
    changed = [replace(target, scale=target.scale * scales.get(index, 1)) for index, target in enumerate(one)]
    result = run("probe", native("one", one), native("other", Adapter(targets=tuple(changed[:3]))))
    assert result.exit_code == 1
    layers = [line.split(".")[2] for line in result.stdout.splitlines()[:-1]]
    assert layers == ["3", "2", "1"]
    assert result.stdout.splitlines()[0].endswith("only the first changes it")
    assert result.stdout.splitlines()[-1] == "not the same change: 3 differences, tolerance 1e-06"
    assert (
        run("probe", "one.loreg.safetensors", "other.loreg.safetensors", "--tolerance", "0.01").stdout.count("\n") == 3
    )


def test_the_comparison_as_json(run: Run, native: Callable[..., Path]) -> None:
    """The verdict, the tolerance, the prefix and every difference."""
    result = run(
        "probe", native("one", adapter()), native("other", adapter(scale=3.0)), "--json", "--tolerance", "0.001"
    )
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["same"], shown["tolerance"], shown["prefix"]) == (1, False, 0.001, "none")
    assert [difference["component"] for difference in shown["differences"]] == ["change", "change"]
    assert all(difference["relative"] > 0.3 for difference in shown["differences"])


def test_names_that_differ_by_one_prefix_are_compared_and_it_is_said(run: Run, native: Callable[..., Path]) -> None:
    """A wrapper's prefix on all names is no difference in the change."""
    result = run("probe", native("one", adapter()), native("other", adapter(prefix="wrapped.")))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "names compared under the prefix +wrapped."
    other = run("probe", "one.loreg.safetensors", native("third", adapter(prefix="wrapped.", scale=3.0)))
    assert other.exit_code == 1


def test_a_gate_is_a_difference(run: Run, native: Callable[..., Path]) -> None:
    """The numbers agree, and one of them is off most of the time."""
    result = run("probe", native("one", adapter()), native("other", replace(adapter(), gate=(27, 91))))
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "gate: the gates are different"


def test_many_differences_are_counted(run: Run, native: Callable[..., Path]) -> None:
    """Twenty are shown, and JSON has them all."""
    result = run("probe", native("one", adapter(targets=30)), native("other", adapter(targets=30, scale=3.0)))
    assert "… and 10 more; --json lists them all" in result.stdout
    shown = json.loads(run("probe", "one.loreg.safetensors", "other.loreg.safetensors", "--json").stdout)
    assert len(shown["differences"]) == 30


def test_bytes_that_are_not_the_stated_ones_have_no_certificate(run: Run, native: Callable[..., Path]) -> None:
    """A flipped bit is exit 7 and one line, not eight other numbers (P-002)."""
    path = native("one", adapter())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("probe", path)
    assert (result.exit_code, result.stdout) == (7, "")
    assert "R-035" in result.stderr


def test_what_is_not_finite_is_refused(run: Run, native: Callable[..., Path]) -> None:
    """NaN is one line and exit 8."""
    target = adapter().targets[0]
    broken = replace(target, tensors={**target.tensors, "A": Tensor("F32", (2, 4), b"\xff" * 32)})
    result = run("probe", native("nan", Adapter(targets=(broken,))))
    assert result.exit_code == 8
    assert "the change is not finite" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_not_there_is_not_found(run: Run, native: Callable[..., Path]) -> None:
    """Either of the two names may be wrong."""
    assert run("probe", "./nothing").exit_code == 3
    assert run("probe", native("one", adapter()), "./nothing").exit_code == 3
