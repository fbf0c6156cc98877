"""``loreg combine``, ``resize``, ``compare`` and ``extract``, as people and programs use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import ml_dtypes
import numpy as np
import pytest
from algebra_adapters import adapter, apart, dense, target
from click.testing import CliRunner, Result
from loreg_converters.peft import converter

from lora_registry.adapter import Adapter, Base, Kind
from lora_registry.algebra.election import Convention
from lora_registry.algebra.recipe import Method
from lora_registry.cli import main
from lora_registry.format.container import encode_tensors
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.ops.arrays import from_array

Run = Callable[..., Result]
Native = Callable[[str, Adapter], Path]

Q = "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run loreg in a folder of its own with a registry of its own."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def native(tmp_path: Path) -> Native:
    """Write an adapter to a native file of the given stem."""

    def write(stem: str, made: Adapter) -> Path:
        path = tmp_path / f"{stem}.loreg.safetensors"
        write_adapter(made, path)
        return path

    return write


def sample(seed: int, *, rank: int = 3, layers: int = 2) -> Adapter:
    """An adapter of a few layers."""
    return adapter(
        *(target(seed=seed + 10 * layer, rank=rank, name=Q.format(layer)) for layer in range(layers)),
        info={"title": f"number {seed}", "license": "MIT"},
    )


def test_a_file_a_folder_and_a_reference_are_combined_by_their_weights(
    run: Run, native: Native, tmp_path: Path
) -> None:
    """Each parent under its reference or its title, never under a path; the sum is the sum."""
    parents = [sample(1), sample(2, rank=2), sample(3)]
    path = native("one", parents[0])
    converter.write(parents[1], tmp_path / "peft")
    assert run("push", native("three", parents[2]), "team/three:1").exit_code == 0
    result = run("combine", f"{path}=0.5", "./peft", "team/three:1=-2e-1", "-o", "all.safetensors", "--dtype", "F64")
    assert result.exit_code == 0, result.output
    made = read_adapter(tmp_path / "all.safetensors")
    for one in made:
        wanted = sum(
            weight * dense(parent.target(one.name)) for parent, weight in zip(parents, (0.5, 1, -0.2), strict=True)
        )
        assert apart(dense(one), wanted) < 1e-12
    names = [record.get("name") for record in made.lineage["parents"]]
    assert names == ["number 1", None, "team/three:1"]
    lines = result.stdout.splitlines()
    assert lines[0].split("\t") == ["target", "rank", "norm", "energy", "error", "rounding"]
    assert lines[1].split("\t")[:2] == [Q.format(0), "8"]
    assert lines[3].startswith("worst: model.layers.")
    assert lines[4] == "wrote all.safetensors"
    assert f"0.5 · {path} + 1 · ./peft + -0.2 · team/three:1" in result.stdout


def test_the_combination_as_json(run: Run, native: Native, tmp_path: Path) -> None:
    """What was asked for, the content, what was kept of each target, and the notes."""
    one, two = native("one", sample(1)), native("two", replace(sample(2), info={"license": "ISC"}))
    arguments = ["--method", "svd", "--rank", "2", "--json", "-o", "both.safetensors"]
    shown = json.loads(run("combine", one, two, *arguments).stdout)
    made = read_adapter(tmp_path / "both.safetensors")
    assert shown["path"] == "both.safetensors"
    assert shown["content"] == str(content_digest(made))
    assert shown["recipe"] == {"method": "svd", "rank": 2, "dtype": "F32"}
    assert shown["notes"] == ["license: the parents do not state one and the same; left out"]
    for record in shown["targets"]:
        wanted = dense(read_adapter(one).target(record["target"])) + dense(read_adapter(two).target(record["target"]))
        assert record["rank"] == 2
        assert record["truncation"] == pytest.approx(apart(dense(made.target(record["target"])), wanted), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "cat"],
        ["--method", "orthogonal"],
        ["--method", "ties", "--density", "0.5", "--rank", "4"],
        ["--method", "ties", "--density", "0.5", "--rank", "4", "--convention", "mergekit"],
        ["--method", "dare", "--density", "0.5", "--energy", "0.9", "--seed", "3"],
        ["--method", "magnitude", "--density", "0.5", "--rank", "4", "--dtype", "BF16"],
    ],
    ids=" ".join,
)
def test_every_method_writes_a_file_that_says_how_it_was_made(
    options: list[str], run: Run, native: Native, tmp_path: Path
) -> None:
    """The parameters that were given are those of the lineage, and a second run writes the same bytes."""
    one, two = native("one", sample(1)), native("two", sample(2))
    written = []
    for name in ("a", "b"):
        assert run("combine", f"{one}=0.7", two, "-o", f"{name}.safetensors", *options).exit_code == 0
        written.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert written[0] == written[1]
    parameters = read_adapter(tmp_path / "a.safetensors").lineage["parameters"]
    assert parameters["weights"] == [0.7, 1]
    for option, value in zip(options[::2], options[1::2], strict=True):
        stated = parameters[option.removeprefix("--")]
        assert stated == (value if isinstance(stated, str) else float(value))


def test_the_choices_are_the_methods_and_conventions_there_are() -> None:
    """The command names them by itself, because listing them must not load numpy."""
    choices = {
        parameter.name: tuple(parameter.type.choices)
        for parameter in main.commands["combine"].params
        if isinstance(parameter.type, click.Choice)
    }
    assert choices["method"] == tuple(method.value for method in Method)
    assert choices["convention"] == tuple(convention.value for convention in Convention)


def test_an_adapter_whose_name_has_an_equals_sign_is_found(run: Run, native: Native) -> None:
    """Only a number after the last one is a weight."""
    path = native("a=b", sample(1))
    assert run("combine", path, "-o", "one.safetensors").exit_code == 0
    assert run("combine", f"{path}=0.5", "-o", "two.safetensors").exit_code == 0


def test_what_cannot_be_combined_is_one_line_and_no_file(run: Run, native: Native, tmp_path: Path) -> None:
    """Usage, another base, DoRA, a place that is taken or has no name of a file: each with its exit code."""
    one, other = native("one", sample(1)), native("other", replace(sample(2), base=Base(name="another/base")))
    magnitude = from_array(np.ones(12, np.float32))
    dora = target(name=Q.format(0))
    dora = replace(dora, tensors={**dora.tensors, "magnitude": magnitude})
    third = native("dora", adapter(dora))
    cases = [
        (2, ["--method", "svd"], [one], "svd needs a rank or an energy"),
        (2, ["--method", "ties", "--rank", "2"], [one], "ties needs a density"),
        (8, [], [one, other], "different bases: name example/base and another/base"),
        (8, [], [one, third], "has a magnitude (DoRA)"),
        (3, [], ["nobody/knows:1"], "nobody/knows:1"),
    ]
    for code, options, sources, said in cases:
        result = run("combine", *sources, "-o", "out.safetensors", *options)
        assert result.exit_code == code, result.output
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out.safetensors").exists()
    assert run("combine", one, other, "-o", "out.safetensors", "--force").exit_code == 0
    assert run("combine", one, "-o", "out.safetensors").exit_code == 4
    assert run("combine", one, "-o", "out.safetensors", "--overwrite").exit_code == 0
    assert run("combine", one, "-o", "out.bin").exit_code == 2


def test_bytes_that_are_not_the_stated_ones_are_not_computed_with(run: Run, native: Native) -> None:
    """A flipped bit is exit 7 in each command that reads an adapter."""
    path, sound = native("one", sample(1)), native("two", sample(2))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for arguments in (
        ["combine", sound, path, "-o", "out.safetensors"],
        ["resize", path, "-o", "out.safetensors", "--rank", "1"],
        ["compare", sound, path],
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (7, "")


def test_resize_says_what_each_target_kept_and_the_worst_of_all(run: Run, native: Native, tmp_path: Path) -> None:
    """For people a table with ranks before and after, for programs the figures; both of the dense error."""
    path = native("one", sample(1, rank=4))
    result = run("resize", path, "-o", "small.safetensors", "--rank", "2")
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[1] for line in lines[:3]] == ["rank", "4 -> 2", "4 -> 2"]
    assert "parameters  176 -> 88" in result.stdout
    shown = json.loads(run("resize", path, "-o", "again.safetensors", "--rank", "2", "--json").stdout)
    made = read_adapter(tmp_path / "again.safetensors")
    assert shown["content"] == str(content_digest(made))
    for record in shown["targets"]:
        error = apart(dense(made.target(record["target"])), dense(sample(1, rank=4).target(record["target"])))
        assert record["truncation"] == pytest.approx(error, rel=1e-5)
        assert record["energy"] == pytest.approx(1 - error**2, rel=1e-5)
    assert made.info["title"] == "number 1"
    worst = max(shown["targets"], key=lambda record: record["truncation"])
    assert f"worst: {worst['target']} keeps {worst['energy']:.4%}" in result.stdout


def test_resize_to_what_is_there_is_the_same_content(run: Run, native: Native) -> None:
    """All of the energy is the adapter itself, in bfloat16 too."""
    one = adapter(target(dtype=ml_dtypes.bfloat16, name=Q.format(0)))
    shown = json.loads(run("resize", native("one", one), "-o", "same.safetensors", "--energy", "1", "--json").stdout)
    assert shown["content"] == str(content_digest(one))


def test_resize_needs_to_know_how_small(run: Run, native: Native, tmp_path: Path) -> None:
    """Neither, both, and numbers out of range are usage errors."""
    path = native("one", sample(1))
    for options in ([], ["--rank", "1", "--energy", "0.5"], ["--rank", "0"], ["--energy", "2"], ["--dtype", "I8"]):
        assert run("resize", path, "-o", "out.safetensors", *options).exit_code == 2
        assert not (tmp_path / "out.safetensors").exists()


def test_compare_tells_the_same_change_from_another(run: Run, native: Native) -> None:
    """The verdict of the probe, the figures by family, and a picture by layer."""
    one, other = native("one", sample(1)), native("other", sample(2, layers=3))
    assert run("combine", one, "-o", "same.safetensors", "--method", "svd", "--rank", "9").exit_code == 0
    same = run("compare", one, "same.safetensors").stdout
    assert "probe        the same change, tolerance 1e-06" in same
    assert "both change  2 targets, cosine 1.0000" in same
    shown = run("compare", one, other).stdout.splitlines()
    assert shown[0].split("\t") == ["count", "target", "cosine", "outputs", "inputs", "conflict", "cancelled"]
    assert shown[1].split("\t")[:2] == ["2", "model.layers.*.self_attn.q_proj.weight"]
    assert shown[2] == "cancelled, layer by layer:"
    assert shown[3].startswith("model.layers.*.self_attn.q_proj.weight  ")
    assert "probe            not the same change, tolerance 1e-06" in shown
    assert f"only the second  {Q.format(2)}" in shown
    listed = run("compare", one, other, "--targets").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed[:3]] == ["target", Q.format(0), Q.format(1)]


def test_the_comparison_as_json(run: Run, native: Native) -> None:
    """Every figure of every target, the names that only one has, and the prefix under which names were compared."""
    one = native("one", sample(1))
    wrapped = [replace(each, name=f"wrapped.{each.name}") for each in sample(2)]
    shown = json.loads(run("compare", one, native("other", Adapter(targets=tuple(wrapped))), "--json").stdout)
    assert (shown["same"], shown["prefix"], shown["only"], shown["notes"]) == (False, "+wrapped.", [[], []], [])
    for record in shown["targets"]:
        name = record["target"].removeprefix("wrapped.")
        x, y = dense(sample(1).target(name)), dense(sample(2).target(name))
        assert record["conflict"] == pytest.approx(np.mean(x * y < 0))
        assert record["cosine"] == pytest.approx(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def checkpoint(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A safetensors file of arrays."""
    tensors = {name: from_array(array) for name, array in sorted(arrays.items())}
    path.write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    return path


def test_a_merged_adapter_is_extracted_from_the_checkpoint_and_merges_back(
    run: Run, native: Native, tmp_path: Path
) -> None:
    """In float32: base + adapter, merged, extracted, and the probe finds the same change at the same rank."""
    random = np.random.default_rng(0)
    base = {Q.format(layer): (random.standard_normal((12, 10)) * 0.02).astype(np.float32) for layer in range(2)}
    checkpoint(tmp_path / "base.safetensors", {**base, "norm.weight": np.ones(10, np.float32)})
    one = native("one", sample(1))
    assert run("merge", one, "--base", "base.safetensors", "-o", "tuned.safetensors").exit_code == 0
    arguments = ["extract", "--base", "base.safetensors", "--tuned", "tuned.safetensors", "--base-name", "example/base"]
    result = run(*arguments, "-o", "found.safetensors")
    assert result.exit_code == 0, result.output
    assert "ranks    3" in result.stdout
    made = read_adapter(tmp_path / "found.safetensors")
    assert made.base.name == "example/base"
    assert all(each.fingerprint is not None for each in made)
    assert run("probe", one, "found.safetensors", "--tolerance", "1e-5").exit_code == 0
    assert run("merge", "found.safetensors", "--base", "base.safetensors", "-o", "again.safetensors").exit_code == 0
    shown = json.loads(run(*arguments, "-o", "few.safetensors", "--rank", "1", "--json").stdout)
    assert [record["rank"] for record in shown["targets"]] == [1, 1]
    assert all(record["noise"] < 1e-5 < record["truncation"] for record in shown["targets"])


def test_what_a_bfloat16_checkpoint_lost_is_told_apart_from_what_was_left_out(run: Run, tmp_path: Path) -> None:
    """A note says how much of the difference is rounding."""
    random = np.random.default_rng(0)
    weight = (random.standard_normal((90, 80)) * 0.02).astype(ml_dtypes.bfloat16)
    change = random.standard_normal((90, 2)) @ random.standard_normal((2, 80)) * 3e-4
    checkpoint(tmp_path / "base.safetensors", {"w": weight})
    checkpoint(tmp_path / "tuned.safetensors", {"w": (weight.astype(np.float64) + change).astype(ml_dtypes.bfloat16)})
    result = run("extract", "--base", "base.safetensors", "--tuned", "tuned.safetensors", "-o", "found.safetensors")
    assert result.exit_code == 0, result.output
    assert "ranks    2" in result.stdout
    [note] = result.stderr.splitlines()
    assert "w: the rounding of the tuned checkpoint alone is" in note


def test_what_cannot_be_extracted_is_one_line_and_no_file(run: Run, tmp_path: Path) -> None:
    """A norm that differs needs --full; equal checkpoints hold no adapter; a base that is not there is not found."""
    ones = np.ones(4, np.float32)
    base = checkpoint(tmp_path / "base.safetensors", {"norm.weight": ones})
    tuned = checkpoint(tmp_path / "tuned.safetensors", {"norm.weight": 2 * ones})
    for code, first, second in ((8, base, tuned), (8, base, base), (3, "nothing.safetensors", tuned)):
        result = run("extract", "--base", first, "--tuned", second, "-o", "out.safetensors")
        assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1)
        assert not (tmp_path / "out.safetensors").exists()
    assert run("extract", "--base", base, "--tuned", tuned, "-o", "out.safetensors", "--full").exit_code == 0
    [full] = read_adapter(tmp_path / "out.safetensors").targets
    assert full.kind is Kind.FULL
