"""The LoRA cases of PEFT's ``tests/test_custom_models.py`` (0.21), through files: equal, or refused by name.

Each of the 46 is saved by PEFT, read and merged by loreg, and held against PEFT: none is silently different. What
becomes of each stands in :mod:`peft_cases`; ``pytest -s`` prints it as a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel
from peft_adapters import arrays, make_peft_adapter, merged_model, peft_warnings_off
from peft_case_models import build
from peft_case_runs import DTYPES, Distance, Saved, distance, merge, read, save, write_base
from peft_cases import CASES, PAIRS, WITHOUT_BIAS, Pair
from tiny_models import MODELS as TINY

from lora_registry.adapter import Adapter
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.errors import LoregError, UnsupportedError
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import Array

RTOL = 1e-5
"""Of each element in float32; where W and the change cancel, a tenth of it of the largest."""

RARE = 1e-4
"""Part of all elements of the table that may be one unit from the correctly rounded sum. A tensor has too few for a
share of its own: of each case it is one element at most."""

Row = dict[str, Distance | str]


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, Row]]:
    """What was found, case by case and type by type; at the end it is printed, and added up."""
    rows: dict[str, Row] = {name: {} for name in CASES}
    yield rows
    print("\n" + rendered(rows))
    found = [cell for row in rows.values() for cell in row.values() if isinstance(cell, Distance)]
    assert sum(each.different for each in found) <= max(1, RARE * sum(each.elements for each in found))


def rendered(rows: dict[str, Row]) -> str:
    """A line for each case; of equal ones how many elements are off by a unit, and of how many."""
    lines = [f"{'case':58}" + "".join(f"{dtype:>12}" for dtype in DTYPES)]
    for name, row in rows.items():
        cells = [
            f"{found.different}/{found.elements}" if isinstance(found, Distance) else found for found in row.values()
        ]
        lines.append(f"{name:58}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def test_there_are_as_many_cases_as_peft_has() -> None:
    """46 configurations of one adapter, and six of two; five of the first are refused, the others are equal."""
    assert (len(CASES), len(PAIRS)) == (46, 6)
    assert sum(case.refusal is not None for case in CASES.values()) == 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_equal_or_refused_by_name(name: str, dtype: str, tmp_path: Path, matrix: dict[str, Row]) -> None:
    """Tensor by tensor what PEFT merges and computes, for bases of each type; or the error that the table states."""
    saved = save(CASES[name], dtype, tmp_path)
    if saved.case.refusal is not None:
        refuse(saved, tmp_path / "out.safetensors")
        matrix[name][dtype] = "refused"
        return
    out, base, exact = merge(saved, tmp_path / "out.safetensors"), read(saved.base), saved.exact()
    assert out.keys() == base.keys() == exact.keys()
    assert {array.dtype for array in out.values()} == {array.dtype for array in base.values()}
    off = matrix[name][dtype] = distance(out, exact, base, dtype)
    assert off.ulps <= 1
    assert off.different <= 1
    if dtype == "F32":
        for tensor, wanted in saved.of_peft().items():
            np.testing.assert_allclose(
                out[tensor], wanted, rtol=RTOL, atol=RTOL / 10 * np.abs(wanted).max(), err_msg=tensor
            )
        # PEFT's own test allows 1e-4, and for convolutions 0.3.
        assert torch.allclose(saved.outputs_of(out), saved.outputs(), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(saved.outputs_of(base), saved.outputs(), rtol=1e-2, atol=1e-2)
    else:
        # PEFT rounds once or, for some layers, the change and then the sum.
        assert distance(out, saved.of_peft(), base, dtype).ulps <= 1


def refuse(saved: Saved, out: Path) -> None:
    """Loreg refuses in the words of the table and leaves nothing; PEFT merges or raises as the table says."""
    refusal = saved.case.refusal
    assert refusal is not None
    with pytest.raises(LoregError) as refused:
        merge_checkpoint(saved.read(), saved.base, out)
    assert type(refused.value) is refusal.error
    assert refusal.words in str(refused.value)
    assert not out.exists()
    if refusal.of_peft is None:
        saved.of_peft()
    else:
        with pytest.raises(refusal.of_peft):
            saved.of_peft()


@pytest.mark.parametrize("name", WITHOUT_BIAS)
def test_a_bias_of_b_needs_a_bias_of_the_base(name: str, tmp_path: Path) -> None:
    """PEFT raises when it merges; loreg names the tensor that is not there."""
    refuse(save(WITHOUT_BIAS[name], "F32", tmp_path), tmp_path / "out.safetensors")


@pytest.mark.parametrize("safe_merge", [False, True])
def test_dora_on_gpt2_with_the_layers_that_peft_chooses(tmp_path: Path, safe_merge: bool) -> None:
    """``test_gpt2_dora_merge_and_unload`` and its safe variant, with random magnitudes: the norms are of columns."""
    model = TINY["gpt2"]()
    model.save_pretrained(tmp_path / "base")
    wrapped = make_peft_adapter(model, LoraConfig(task_type="CAUSAL_LM", use_dora=True), tmp_path / "adapter")
    merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
    with peft_warnings_off():
        wanted = arrays(wrapped.merge_and_unload(safe_merge=safe_merge))
    out, base = read(tmp_path / "out"), read(tmp_path / "base")
    changed = {name for name in out if not np.array_equal(out[name], base[name])}
    assert changed == {f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2)}
    for name, array in out.items():
        np.testing.assert_allclose(array, wanted[name], rtol=RTOL, atol=RTOL / 10 * np.abs(wanted[name]).max())


def two(pair: Pair, folder: Path) -> tuple[Adapter, Adapter]:
    """Both adapters of a pair, each saved by PEFT on a model of its own, and the base in ``folder``."""
    write_base(build(pair.model), "F32", folder / "base.safetensors")
    read_back = []
    for seed, settings in enumerate((pair.one, pair.two)):
        config = LoraConfig(init_lora_weights=False, **settings)
        make_peft_adapter(build(pair.model), config, folder / str(seed), seed=seed)
        read_back.append(converter.read(folder / str(seed))[0])
    return read_back[0], read_back[1]


def both_in_peft(pair: Pair, folder: Path) -> PeftModel:
    """One model of PEFT with the adapters that :func:`two` saved."""
    with peft_warnings_off():
        model = PeftModel.from_pretrained(build(pair.model), folder / "0", adapter_name="one")
        model.load_adapter(folder / "1", adapter_name="two")
    return model


def close(found: dict[str, Array], wanted: dict[str, Array]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.allclose(array, wanted[name], rtol=RTOL, atol=RTOL / 2 * np.abs(wanted[name]).max())
        for name, array in found.items()
    )


@pytest.mark.parametrize("name", PAIRS)
def test_two_adapters_in_turn_at_once_and_in_peft(name: str, tmp_path: Path) -> None:
    """Merging one and then the other, merging their ``cat``, and PEFT's merge of both give the same checkpoint."""
    pair, (one, other) = PAIRS[name], two(PAIRS[name], tmp_path)
    base, first, last, once = (tmp_path / f"{part}.safetensors" for part in ("base", "first", "last", "once"))
    merge_checkpoint(one, base, first)
    merge_checkpoint(other, first, last)
    sum_of_both = combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe(method=Method.CAT)).adapter
    merge_checkpoint(sum_of_both, base, once)
    assert close(read(last), read(once))
    assert not close(read(first), read(once))
    if pair.alone:
        with pytest.raises(ValueError, match="all adapters must target the same set of parameters"):
            both_in_peft(pair, tmp_path)
        of_each = [
            arrays(merged_model(PeftModel.from_pretrained(build(pair.model), tmp_path / str(seed)))) for seed in (0, 1)
        ]
        before = read(base)
        assert close(read(once), {key: of_each[0][key] + of_each[1][key] - before[key] for key in before})
    else:
        with peft_warnings_off():
            merged = both_in_peft(pair, tmp_path).merge_and_unload(adapter_names=["one", "two"])
        assert close(read(once), arrays(merged))


@pytest.mark.parametrize(
    "pair",
    [
        Pair("MLP", {"target_modules": ["lin0", "lin1"], "use_dora": True}, {"target_modules": ["lin0"]}),
        Pair("MLP", {"target_modules": ["lin0"]}, {"target_modules": ["lin0", "lin1"], "use_dora": True}),
        Pair("EmbConv1D", *[{"target_modules": ["emb", "conv1d"], "use_dora": True}] * 2),
        Pair("Conv3d", *[{"target_modules": ["conv3d", "lin0"], "use_dora": True}] * 2),
    ],
    ids=["DoRA, LoRA", "LoRA, DoRA", "DoRA on tables and Conv1D", "DoRA on kernels"],
)
def test_dora_in_turn_is_that_of_peft_in_turn(pair: Pair, tmp_path: Path) -> None:
    """One merged and saved, and the other on top: the norm of the second is of what the first made of W, as in PEFT.

    A model of PEFT that has both at once takes the norm of W with the second alone. No sum of the two has either.
    """
    one, other = two(pair, tmp_path)
    base, first, last = (tmp_path / f"{part}.safetensors" for part in ("base", "first", "last"))
    merge_checkpoint(one, base, first)
    merge_checkpoint(other, first, last)
    merged = build(pair.model)
    for seed in (0, 1):
        merged = merged_model(PeftModel.from_pretrained(merged, tmp_path / str(seed)))
    assert close(read(last), arrays(merged))
    with peft_warnings_off():
        at_once = both_in_peft(pair, tmp_path).merge_and_unload(adapter_names=["one", "two"])
    assert close(read(last), arrays(at_once)) == (not pair.two.get("use_dora"))
    with pytest.raises(UnsupportedError, match=r"has a magnitude \(DoRA\)"):
        combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe(method=Method.CAT))


@pytest.mark.parametrize("weights", [(0.5, 0.25), (2.0, -1.0)])
def test_weights_of_several_adapters_are_those_of_peft(weights: tuple[float, float], tmp_path: Path) -> None:
    """``add_weighted_adapter`` with ``cat``, and PEFT's merge of that."""
    pair = Pair("MLP", {"target_modules": ["lin0", "lin1"], "r": 3}, {"target_modules": ["lin0", "lin1"], "r": 2})
    adapters = two(pair, tmp_path)
    parts = [Weighted(Parent(adapter), weight) for adapter, weight in zip(adapters, weights, strict=True)]
    merge_checkpoint(
        combine(parts, Recipe(method=Method.CAT)).adapter, tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    )
    model = both_in_peft(pair, tmp_path)
    model.add_weighted_adapter(["one", "two"], list(weights), "sum", combination_type="cat")
    model.set_adapter("sum")
    assert close(read(tmp_path / "out.safetensors"), arrays(merged_model(model)))


def test_rows_that_two_adapters_replace_are_refused_as_peft_refuses_them(tmp_path: Path) -> None:
    """PEFT says so when it merges; here the rows are named."""
    rows = {"target_modules": ["lin0"], "trainable_token_indices": {"emb": [0, 1]}}
    pair = Pair("EmbConv1D", rows, rows)
    one, other = two(pair, tmp_path)
    with pytest.raises(UnsupportedError, match=r"emb\.weight: several adapters replace its rows 0, 1"):
        combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe(method=Method.CAT))
    model = both_in_peft(pair, tmp_path)
    with pytest.raises(ValueError, match="Only disjunct token indices"):
        model.merge_and_unload(adapter_names=["one", "two"])
