"""Stacked experts in the three layouts that PEFT has had; the golden files were saved by those versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loreg_converters._peft.experts import Era, era, gated_labels
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from torch import nn

from lora_registry.adapter import Target
from lora_registry.errors import InvalidInputError, UnsupportedError

ERAS = Path(__file__).parent / "eras"
PLAIN = ["0.17.1-plain", "0.18.1-plain", "0.19.0-plain", "0.19.1-plain", "0.21.2-plain"]
TRANSPOSED = [name.replace("plain", "transposed") for name in PLAIN]
GPT_OSS = {"base_model_class": "GptOssForCausalLM", "parent_library": "transformers.models.gpt_oss.modeling_gpt_oss"}
Delta = Callable[[Target], np.ndarray]
Edit = Callable[..., None]


@pytest.fixture
def golden(tmp_path: Path, edit: Edit) -> Callable[[str], Path]:
    """A copy of a golden folder; a transposed one says that its base is gpt-oss."""

    def copy(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(ERAS / name, folder)
        if name in TRANSPOSED:
            edit(folder, auto_mapping=GPT_OSS)
        return folder

    return copy


@pytest.mark.parametrize("name", PLAIN + TRANSPOSED)
def test_every_era_is_read_as_its_own_version_merged_it(name: str, golden: Callable[[str], Path], delta: Delta) -> None:
    """s·B·A in the stored layout is the change that the version that saved the file made on merging."""
    adapter, _ = converter.read(golden(name))
    merged = load_file(ERAS / name / "delta.safetensors")
    assert {target.name for target in adapter} == set(merged)
    for target in adapter:
        assert target.shape == merged[target.name].shape
        np.testing.assert_allclose(delta(target), merged[target.name], rtol=0, atol=5e-7)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_without_a_hint_a_wrong_layout_shows_in_the_shape(name: str, delta: Delta) -> None:
    """Where the family is not known, the claimed shape is right, or differs from the base's, which merging refuses."""
    adapter, report = converter.read(ERAS / name)
    merged = load_file(ERAS / name / "delta.safetensors")
    for target in adapter:
        if target.shape == merged[target.name].shape:
            np.testing.assert_allclose(delta(target), merged[target.name], rtol=0, atol=5e-7)
        else:
            assert target.shape[1:] == merged[target.name].shape[:0:-1]
            assert any(entry.subject == target.name and "if this is wrong" in entry.reason for entry in report.entries)


class _Experts(nn.Module):
    def __init__(self, shapes: dict[str, tuple[int, ...]], *, transposed: bool) -> None:
        super().__init__()
        for name in ("gate_up_proj", "down_proj"):
            self.register_parameter(name, nn.Parameter(torch.zeros(shapes[f"experts.{name}"])))
        if transposed:
            self.is_transposed = True


class _Model(nn.Module):
    def __init__(self, shapes: dict[str, tuple[int, ...]], *, transposed: bool) -> None:
        super().__init__()
        self.experts = _Experts(shapes, transposed=transposed)


@pytest.mark.parametrize("name", PLAIN + TRANSPOSED)
def test_every_era_is_written_so_that_todays_peft_makes_the_same_change(
    name: str, golden: Callable[[str], Path], tmp_path: Path
) -> None:
    """Old layouts are rewritten in the layout of 0.19.1, with that peft_version, and PEFT merges the same."""
    adapter, _ = converter.read(golden(name))
    out = tmp_path / "out"
    report = converter.write(adapter, out)
    version = json.loads((out / "adapter_config.json").read_text())["peft_version"]
    old = name.startswith(("0.17", "0.18", "0.19.0"))
    assert version == ("0.19.1" if old else name.partition("-")[0])
    assert any(entry.subject == "peft_version" for entry in report.entries) == old
    merged = load_file(ERAS / name / "delta.safetensors")
    base = _Model({key: value.shape for key, value in merged.items()}, transposed=name in TRANSPOSED)
    result = dict(PeftModel.from_pretrained(base, out).merge_and_unload().named_parameters())
    for key, value in merged.items():
        np.testing.assert_allclose(result[key].detach().numpy(), value, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (None, Era.OLD),
        ("0.17.0", Era.OLD),
        ("0.18.1", Era.OLD),
        ("0.18.0.dev0@abc", Era.OLD),
        ("0.19.0", Era.V0_19_0),
        ("0.19.1", Era.NEW),
        ("0.19.2.dev0@abc", None),
        ("0.21.2", Era.NEW),
        ("0.21.3.dev0@abc", Era.NEW),
        ("0.18.2.dev0@abc", None),
        ("0.19.1.dev0@UNKNOWN", None),
        ("new", None),
    ],
)
def test_era_of_a_version(version: str | None, expected: Era | None) -> None:
    """Released versions tell the era; development versions between 0.18 and 0.20 do not, and are refused."""
    if expected is None:
        with pytest.raises(UnsupportedError, match="peft_version"):
            era(version)
    else:
        assert era(version) is expected


def test_gated_shapes_tell_the_labels() -> None:
    """H to 2·I and I to H; no pair fits both readings."""
    assert gated_labels((8, 6), (6, 4)) is True
    assert gated_labels((6, 8), (4, 6)) is False
    assert gated_labels((6, 4), (8, 6)) is None
    assert gated_labels((8, 8), (8, 8)) is None


class _Layer(nn.Module):
    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class _Holder(nn.Module):
    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        self.mlp = _Layer(**parameters)


def save(folder: Path, parameters: dict[str, tuple[int, ...]]) -> Path:
    """LoRA on each of ``parameters``, in the order of registration given."""
    names = [f"mlp.{name}" for name in sorted(parameters)]
    config = LoraConfig(r=2, target_modules=[], target_parameters=names, init_lora_weights=False)
    get_peft_model(_Holder(**parameters), config).save_pretrained(folder)
    return folder


def test_order_of_other_pairs_is_refused(tmp_path: Path) -> None:
    """Two parameters that no rule orders cannot be told apart: PEFT nests them in the order of registration."""
    folder = save(tmp_path / "a", {"w2": (3, 8, 6), "w1": (3, 6, 8)})
    with pytest.raises(UnsupportedError, match="which wrapper is which of w1, w2"):
        converter.read(folder)


def test_gated_pair_registered_the_other_way_round_is_refused(tmp_path: Path) -> None:
    """The shapes contradict the usual order, so nothing is assumed."""
    folder = save(tmp_path / "a", {"down_proj": (3, 6, 4), "gate_up_proj": (3, 8, 6)})
    with pytest.raises(UnsupportedError, match="which wrapper is which of down_proj, gate_up_proj"):
        converter.read(folder)


def test_square_experts_are_refused_unless_the_family_is_known(tmp_path: Path, edit: Edit) -> None:
    """For a square matrix no shape would show a wrong layout; a transformers class in auto_mapping decides."""
    folder = save(tmp_path / "a", {"w": (3, 5, 5)})
    with pytest.raises(UnsupportedError, match=r"mlp\.w.*square"):
        converter.read(folder)
    edit(folder, auto_mapping=GPT_OSS)
    assert converter.read(folder)[0].targets[0].layout == ("expert", "in", "out")
    edit(folder, auto_mapping=GPT_OSS | {"parent_library": "transformers.models.mixtral.modeling_mixtral"})
    assert converter.read(folder)[0].targets[0].layout == ("expert", "out", "in")
    edit(folder, auto_mapping=None, peft_version=...)
    with pytest.raises(UnsupportedError, match="missing"):
        converter.read(folder)
    edit(folder, peft_version="0.18.1")
    assert converter.read(folder)[0].targets[0].layout == ("expert", "in", "out")


def test_base_name_hints_at_the_family(tmp_path: Path, edit: Edit) -> None:
    """gpt-oss in the base model's name decides too; a wrong hint would show in the shape."""
    folder = save(tmp_path / "a", {"w": (3, 5, 7)})
    assert converter.read(folder)[0].targets[0].shape == (3, 5, 7)
    edit(folder, base_model_name_or_path="openai/gpt-oss-20b")
    assert converter.read(folder)[0].targets[0].shape == (3, 7, 5)


def test_rank_that_does_not_divide_is_invalid(tmp_path: Path, edit: Edit) -> None:
    """A holds experts times rank rows; another rank in the config would change the scale."""
    folder = save(tmp_path / "a", {"w": (3, 5, 7)})
    edit(folder, r=4)
    with pytest.raises(InvalidInputError, match="no multiple of the rank 4"):
        converter.read(folder)


def test_every_transformers_experts_class_registers_the_pair_in_this_order() -> None:
    """The order that is assumed for gate_up_proj and down_proj is that of the installed transformers."""
    import re

    import transformers

    models = Path(transformers.__file__).parent / "models"
    seen = 0
    for source in models.glob("*/modeling_*.py"):
        for body in re.split(r"\nclass ", source.read_text()):
            order = re.findall(r"self\.(gate_up_proj|down_proj) = nn\.Parameter\(", body)
            if set(order) == {"gate_up_proj", "down_proj"}:
                assert order[0] == "gate_up_proj", source
                seen += 1
    assert seen > 20


def test_transposed_families_are_those_of_transformers() -> None:
    """The table of families is that of the installed transformers, and so are the names of Conv1D modules."""
    import re

    import transformers
    from loreg_converters._peft.family import CONV1D_MODULES, IN_OUT_EXPERTS, TRANSPOSED_EXPERTS

    sources = {
        path: path.read_text() for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
    }
    transposed = {path.parent.name for path, text in sources.items() if re.search(r"\(.*is_transposed=True", text)}
    assert transposed == TRANSPOSED_EXPERTS
    inputs_first = r"gate_up_proj = nn\.Parameter\(torch\.\w+\(self\.num_experts, self\.hidden_\w+, 2 \*"
    assert {path.parent.name for path, text in sources.items() if re.search(inputs_first, text)} == IN_OUT_EXPERTS
    conv1d = {name for text in sources.values() for name in re.findall(r"self\.(\w+) = Conv1D\(", text)}
    assert conv1d == CONV1D_MODULES
