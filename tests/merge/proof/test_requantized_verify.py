"""Merges whose output stays quantized are judged by the scheme's own encoding of W', and are undone and redone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Ggml
from gguf_files import model as write_gguf
from golden_vectors import NAMES, write_checkpoint
from quantized_merges import OTHER, change, lora
from undone import content, there_and_back

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.cli import main
from lora_registry.errors import InconclusiveError
from lora_registry.format.container import encode_tensors, open_container
from lora_registry.format.writer import write_adapter
from lora_registry.merge.bases.quantized import open_view
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.proof.recompute import recompute
from lora_registry.merge.replay import replay
from lora_registry.merge.undo.patch import write_undo
from lora_registry.ops.arrays import from_array, to_array

AGAIN = MergeOptions(requantize=True)
FINE = ["int8", "fp8", "gptq-8", "compressed-fp8", "compressed-int8"]
"""Schemes that keep most of the change below, so that mistakes show."""
TYPES = [Ggml.Q4_0, Ggml.Q4_1, Ggml.Q5_0, Ggml.Q5_1, Ggml.Q8_0]


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint as they are stored; in memory, so that the file may be written over."""
    container = open_container(folder / "model.safetensors")
    return {
        name: Tensor(entry.dtype, entry.shape, memoryview(bytes(container.tensor(name).data)))
        for name, entry in container.entries.items()
    }


def rewritten(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a checkpoint."""
    tensors = stored(folder)
    edit(tensors)
    (folder / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter with another scale."""
    return replace(adapter, targets=(replace(adapter.targets[0], scale=scale),))


@pytest.mark.parametrize("name", NAMES)
def test_what_loreg_quantized_again_holds(name: str, tmp_path: Path) -> None:
    """Every scheme: all rows, a few, and a weight that no target changes."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN)
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert found.changed[0].says.startswith("quantized again as ")
    assert {judged.answer for judged in found.untouched} == {Answer.HOLDS}
    assert any("the merged checkpoint is quantized as the base is" in note for note in found.notes)
    said, own = found.changed[0].fidelity, receipt.tensors[0].fidelity
    assert said is not None
    assert own is not None
    assert abs(said.relative_error - own.relative_error) < 1e-4
    assert "of the worst change lost to quantization" in found.lines()[-1]
    assert recompute(tmp_path / "out", tmp_path / "base", adapter, rows=2).answer is Answer.HOLDS
    other = lora("n.weight", (4, 6))
    merge_checkpoint(other, tmp_path / "base", tmp_path / "other", AGAIN)
    found = recompute(tmp_path / "other", tmp_path / "base", other, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert "its codes and scales are those of the base" in {judged.says for judged in found.untouched}


@pytest.mark.parametrize("options", [MergeOptions(), AGAIN], ids=["plain", "again"])
@pytest.mark.parametrize("name", ["nf4-double", "int8", "gptq-4", "awq", "fp8", "compressed-int4-zeros"])
def test_norms_and_whole_values_are_those_of_the_view(name: str, options: MergeOptions, tmp_path: Path) -> None:
    """DoRA, and a weight that is replaced, written unquantized or quantized again."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    target = lora("m.weight", base.shape, size=0.3).targets[0]
    magnitude = from_array((np.linalg.norm(base.astype(np.float64), axis=1) * 1.05).astype(np.float32))
    value = from_array(base.astype(np.float32) * np.float32(1.1))
    for number, changed in enumerate(
        (
            replace(target, tensors={**target.tensors, "magnitude": magnitude}),
            Target(name="m.weight", kind=Kind.FULL, layout=(), shape=base.shape, tensors={"value": value}),
        )
    ):
        adapter = Adapter(targets=(changed,))
        out = tmp_path / f"out{number}"
        merge_checkpoint(adapter, tmp_path / "base", out, options)
        found = recompute(out, tmp_path / "base", adapter, every=True)
        assert found.answer is Answer.HOLDS, found.lines()


@pytest.mark.parametrize("kind", TYPES)
def test_a_gguf_file_that_was_quantized_again_holds(kind: Ggml, tmp_path: Path) -> None:
    """In the element types of its tensors, with the rows of queries in the order of the file."""
    base = write_gguf(tmp_path / "base.gguf", "llama", kind)
    adapter = lora("model.layers.0.self_attn.q_proj.weight", (64, 64), size=0.5)
    merge_checkpoint(adapter, base, tmp_path / "out.gguf", AGAIN)
    found = recompute(tmp_path / "out.gguf", base, adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert found.changed[0].says == f"quantized again as {kind.name} is"
    assert {judged.says for judged in found.untouched} == {"its codes and scales are those of the base"}
    wrong = recompute(tmp_path / "out.gguf", base, scaled(adapter, 1.0), every=True)
    assert wrong.answer is Answer.DOES_NOT
    there_and_back(base, tmp_path / "out.gguf", tmp_path)


@pytest.mark.parametrize("name", FINE)
def test_known_mistakes_show_through_the_quantization(name: str, tmp_path: Path) -> None:
    """Another scale, subtracted, and not applied: each is called by its name; what is no rule's scale by its size."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN)
    for scale, says in ((1.0, "with scale 0.5 instead of 1"), (-0.5, "it was subtracted")):
        found = recompute(tmp_path / "out", tmp_path / "base", scaled(adapter, scale), every=True)
        assert found.answer is Answer.DOES_NOT
        assert says in found.changed[0].says
    found = recompute(tmp_path / "base", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.DOES_NOT
    assert "it is the base: the adapter was not applied" in found.changed[0].says
    merge_checkpoint(scaled(adapter, 0.6172839), tmp_path / "base", tmp_path / "odd", AGAIN)
    found = recompute(tmp_path / "odd", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.DOES_NOT
    assert "along the adapter's change, it holds 1." in found.changed[0].says


def test_a_single_wrong_code_shows_where_all_rows_are_looked_at(tmp_path: Path) -> None:
    """And nothing says what it is, so that it is not decided; a state that changed is not the base's."""
    base = write_checkpoint(tmp_path / "base", "nf4", **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN)

    def flip(tensors: dict[str, Tensor]) -> None:
        codes = to_array(tensors["m.weight"]).copy()
        codes.reshape(-1)[77] ^= 0x70
        tensors["m.weight"] = from_array(codes)

    rewritten(tmp_path / "out", flip)
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.UNDECIDED
    assert found.changed[0].says == "quantized again, and not as loreg encodes nf4"
    assert found.changed[0].off == pytest.approx(1 / base.size)


def test_parts_that_no_change_concerns_are_the_base_s(tmp_path: Path) -> None:
    """What belongs to no weight, such as the scale of activations, is there, and is the same."""
    base = write_checkpoint(tmp_path / "base", "fp8", **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN)
    rewritten(tmp_path / "out", lambda tensors: tensors.update({"m.activation_scale": from_array(np.float32([7.0]))}))
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.DOES_NOT
    assert found.changed[0].answer is Answer.HOLDS
    rewritten(tmp_path / "out", lambda tensors: tensors.pop("m.activation_scale"))
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.problems == ("missing: m.activation_scale",)


def test_the_sixteen_values_are_no_part_that_changes(tmp_path: Path) -> None:
    """However little: others stand for another weight."""
    base = write_checkpoint(tmp_path / "base", "nf4-double", **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN)
    values = to_array(stored(tmp_path / "out")["m.weight.quant_map"]).copy()
    values[3] = np.nextafter(values[3], np.float32(1))
    rewritten(tmp_path / "out", lambda tensors: tensors.update({"m.weight.quant_map": from_array(values)}))
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.DOES_NOT
    assert "m.weight.quant_map is not the base's, and no change concerns it" in found.changed[0].says


def test_what_another_program_quantized_is_not_decided_and_its_figures_are_shown(tmp_path: Path) -> None:
    """Scales that every group gets anew, as bitsandbytes gives them."""
    base = write_checkpoint(tmp_path / "base", "int8", **OTHER)
    adapter = lora("m.weight", base.shape, size=0.3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    tensors = stored(tmp_path / "base")
    wanted = (base.astype(np.float64) + change(adapter)).astype(np.float32)
    scales = (np.abs(wanted).max(axis=1) * np.float32(1.02)).astype(np.float32)
    tensors["m.weight"] = from_array(np.rint(wanted * (127 / scales[:, None])).astype(np.int8))
    tensors["m.SCB"] = from_array(scales)
    (tmp_path / "out" / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.UNDECIDED
    assert found.changed[0].says == "quantized again, and not as loreg encodes int8"
    figures = found.to_json()["changed"][0]["fidelity"]
    assert 0 < figures["relative_error"] < 0.2
    assert figures["cosine"] > 0.98
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    arguments = ["verify", str(tmp_path / "out"), "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(main, [*arguments, "--adapter", str(tmp_path / "a.loreg.safetensors"), "--all"])
    assert result.exit_code == InconclusiveError.exit_code
    assert "of the worst change lost to quantization" in result.stdout


def test_a_checkpoint_that_was_quantized_after_the_merge_is_not_decided(tmp_path: Path) -> None:
    """The base is not quantized, or in another scheme: nothing says how it was done, and the figures are told."""
    base = write_checkpoint(tmp_path / "merged", "nf4", **OTHER)
    adapter = lora("m.weight", base.shape, size=0.05)
    (tmp_path / "base").mkdir()
    plain = from_array((base.astype(np.float32) - change(adapter).astype(np.float32)).astype(np.float16))
    (tmp_path / "base" / "model.safetensors").write_bytes(
        b"".join(map(bytes, encode_tensors({"m.weight": plain, **OTHER}, {})))
    )
    found = recompute(tmp_path / "merged", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.UNDECIDED
    assert found.changed[0].says == "quantized, and nothing says in which way, to do it again"
    assert found.changed[0].fidelity is not None
    assert any("and the base is not, or in another way" in note for note in found.notes)
    found = recompute(tmp_path / "merged", tmp_path / "base", lora("n.weight", (4, 6)), every=True)
    assert any(judged.answer is Answer.UNDECIDED and "it is quantized" in judged.says for judged in found.untouched)


def test_a_quantized_checkpoint_is_its_own_base(tmp_path: Path) -> None:
    """Without an adapter, every part is compared."""
    write_checkpoint(tmp_path / "base", "awq", **OTHER)
    assert recompute(tmp_path / "base", tmp_path / "base", None, every=True).answer is Answer.HOLDS
    gguf = write_gguf(tmp_path / "m.gguf", "llama")
    assert recompute(gguf, gguf, None, every=True).answer is Answer.HOLDS


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_that_stays_quantized_is_undone_and_replayed(name: str, tmp_path: Path) -> None:
    """By a patch that holds the parts that changed, and from the receipt with any number of workers."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN, workers=1)
    there_and_back(tmp_path / "base", tmp_path / "out", tmp_path)
    replay(tmp_path / "out" / "loreg-receipt.json", adapter, tmp_path / "base", tmp_path / "again2", workers=3)
    assert content(tmp_path / "again2") == content(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "loreg-receipt.json").read_text())["options"]["requantize"] is True


def test_the_patch_of_a_gguf_file_that_stays_one_holds_what_changed(tmp_path: Path) -> None:
    """Eleven tensors of twelve are copied."""
    base = write_gguf(tmp_path / "base.gguf", "llama", Ggml.Q8_0)
    adapter = lora("model.layers.0.mlp.down_proj.weight", (64, 96), size=0.05)
    merge_checkpoint(adapter, base, tmp_path / "out.gguf", AGAIN)
    size = write_undo(base, tmp_path / "out.gguf", tmp_path / "p.undo")
    assert open_view(base, adapter).shape("model.layers.0.mlp.down_proj.weight") == (64, 96)
    assert size.patch < base.stat().st_size
    replay(tmp_path / "out.gguf.receipt.json", adapter, base, tmp_path / "again.gguf")
    assert content(tmp_path / "again.gguf") == content(tmp_path / "out.gguf")
