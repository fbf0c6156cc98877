"""The pages on foreign formats have one form, leave no field of a document out, and their examples are right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lora_registry.segments import Segment, Segments

MAPPINGS = Path(__file__).parent.parent / "spec" / "mappings"
README = (MAPPINGS / "README.md").read_text(encoding="utf-8")
CONVERTED = ("onnx-adapter",)
PAGES = sorted(page for page in MAPPINGS.glob("*.md") if page.name not in ("README.md", "peft.md"))
FENCE = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTCOMES = {"kept", "derived", "dropped", "refused"}
SECTIONS = ["Recognition", "From", "Lost from", "Refused from", "To", "Lost to", "Traps", "Example"]

Matrix = NDArray[np.float64]
Changes = dict[str, Matrix]


def text(page: Path) -> str:
    """The page."""
    return page.read_text(encoding="utf-8")


def rows(page: str, *header: str) -> list[list[str]]:
    """The rows of the table with this header, as cells; a vertical bar in code is written with a backslash."""
    lines = page.splitlines()
    start = lines.index(f"| {' | '.join(header)} |")
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def subjects() -> list[str]:
    """What a page says of every format that is written: the first column of the list in the overview."""
    return [row[0] for row in rows(README, "row", "what it is about")]


# Form


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_its_parts(page: Path) -> None:
    """Every page answers the same questions in the same order."""
    titles = re.findall(r"^## (.*)$", text(page), re.MULTILINE)
    assert len(titles) == len(SECTIONS)
    assert all(title == part or title.startswith(f"{part} ") for title, part in zip(titles, SECTIONS, strict=True))


@pytest.mark.parametrize("page", [*PAGES, MAPPINGS / "peft.md"], ids=lambda page: page.stem)
def test_no_field_is_left_out(page: Path) -> None:
    """The table of what is lost on the way out has a row for every field and kind, in one order."""
    table = rows(text(page), "in loreg", "outcome", "how, or why")
    assert [row[0] for row in table] == subjects()
    assert all(row[2] for row in table)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_outcomes_are_those_of_a_report(page: Path) -> None:
    """An outcome is kept, derived, dropped or refused, and nothing vaguer."""
    for row in re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", text(page), re.MULTILINE):
        if set(row.replace(",", " ").split()) & OUTCOMES:
            assert set(row.replace(",", " ").split()) <= OUTCOMES, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_whether_a_converter_exists(page: Path) -> None:
    """Nobody has to try a command to learn that loreg cannot read the format yet."""
    assert ("loreg has no converter for " in text(page)) == (page.stem not in CONVERTED)


@pytest.mark.parametrize("page", [*PAGES, MAPPINGS / "README.md", MAPPINGS / "peft.md"], ids=lambda page: page.stem)
def test_pages_describe(page: Path) -> None:
    """These pages bind nobody: no key words, in capitals or not, and one sentence a line."""
    prose = FENCE.sub("", text(page))
    assert re.findall(r".*\b(?:must|shall|should|may)\b.*", prose, re.IGNORECASE) == []
    lines = [line for line in prose.splitlines() if line and not line.startswith(("|", "#"))]
    assert [line for line in lines if re.search(r"[.?!] [A-Z]", line)] == []


def test_the_overview_has_every_page() -> None:
    """The overview has one row for each page."""
    linked = {name for row in rows(README, *OVERVIEW) for name in re.findall(r"\(([a-z-]+\.md)\)", row[-2])}
    assert linked == {page.name for page in PAGES} | {"peft.md"}


OVERVIEW = (
    "format",
    "file",
    "scale",
    "A and B as stored",
    "fused",
    "norm of a magnitude",
    "cannot say",
    "page",
    "loreg",
)


def test_claimed_converters_exist() -> None:
    """The overview claims exactly the converters that the package brings."""
    from importlib.metadata import entry_points

    claimed = {
        name for row in rows(README, *OVERVIEW) if row[-1] != "no" for name in re.findall(r"\(([a-z-]+)\.md\)", row[-2])
    }
    brought = {point.name for point in entry_points(group="loreg.converters") if point.value.startswith("loreg_")}
    assert claimed == brought


# Examples: what the foreign program computes, written down here a second time, by hand


def array(value: Any) -> Matrix:
    """The numbers as binary64."""
    return np.array(value, dtype=np.float64)


def loralib(foreign: Mapping[str, Any]) -> Changes:
    """MergedLinear: a grouped product per enabled part, zeros elsewhere."""
    a, b = array(foreign["attn.lora_A"]), array(foreign["attn.lora_B"])
    enabled, r = foreign["enable_lora"], b.shape[1]
    blocks = iter(zip(np.split(a, sum(enabled)), np.split(b, sum(enabled)), strict=True))
    height = len(b) // sum(enabled)
    parts = [np.multiply.outer(np.zeros(height), np.zeros(a.shape[1])) for _ in enabled]
    for index, on in enumerate(enabled):
        if on:
            low, high = next(blocks)
            parts[index] = foreign["alpha"] / r * high @ low
    return {"attn.weight": np.concatenate(parts)}


def kohya(foreign: Mapping[str, Any]) -> Changes:
    """alpha over the rows of lora_down; a Tucker core sits between down and up."""
    name = "lora_unet_conv_in"
    down, up, mid = (array(foreign[f"{name}.lora_{part}.weight"]) for part in ("down", "up", "mid"))
    change = np.einsum("mnhw,om,ni->oihw", mid, up[:, :, 0, 0], down[:, :, 0, 0])
    return {"unet.conv_in.weight": foreign[f"{name}.alpha"] / len(down) * change}


def diffusers(foreign: Mapping[str, Any]) -> Changes:
    """A fused projection in three parts, without alpha."""
    name = "double_blocks.0.img_attn.qkv"
    whole = array(foreign[f"{name}.lora_B.weight"]) @ array(foreign[f"{name}.lora_A.weight"])
    names = ("to_q", "to_k", "to_v")
    return {f"transformer_blocks.0.attn.{n}.weight": part for n, part in zip(names, np.split(whole, 3), strict=True)}


def mlx(foreign: Mapping[str, Any]) -> Changes:
    """(scale · lora_bᵀ) @ lora_aᵀ."""
    name = "model.layers.0.self_attn.q_proj"
    a, b = array(foreign[f"{name}.lora_a"]), array(foreign[f"{name}.lora_b"])
    return {f"{name}.weight": foreign["scale"] * b.T @ a.T}


def gguf(foreign: Mapping[str, Any]) -> Changes:
    """alpha over the rank; the rows of a head go from pairs to halves."""
    a, b = (array(foreign[f"blk.0.attn_q.weight.lora_{part}"]) for part in "ab")
    heads = foreign["heads"]
    stored = foreign["adapter.lora.alpha"] / b.shape[1] * b @ a
    rotated = stored.reshape(heads, -1, 2, a.shape[1]).swapaxes(1, 2).reshape(stored.shape)
    return {"model.layers.0.self_attn.q_proj.weight": rotated}


def torchtune(foreign: Mapping[str, Any]) -> Changes:
    """alpha over rank; torchtune keeps the rows of a head as pairs."""
    a, b = (array(foreign[f"layers.0.attn.q_proj.lora_{part}.weight"]) for part in "ab")
    stored = foreign["lora_alpha"] / foreign["r"] * b @ a
    rotated = stored.reshape(foreign["heads"], -1, 2, a.shape[1]).swapaxes(1, 2).reshape(stored.shape)
    return {"model.layers.0.self_attn.q_proj.weight": rotated}


def megatron(foreign: Mapping[str, Any]) -> Changes:
    """The fused projection is interleaved by group: its queries, then one key, then one value head."""
    prefix = "decoder.layers.0.self_attention.linear_qkv.adapter.linear_"
    stored = (
        foreign["alpha"] / foreign["dim"] * array(foreign[f"{prefix}out.weight"]) @ array(foreign[f"{prefix}in.weight"])
    )
    groups = stored.reshape(foreign["num_query_groups"], -1, stored.shape[1])
    q, k, v = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]  # heads of one row
    names = zip(("q_proj", "k_proj", "v_proj"), (q, k, v), strict=True)
    return {f"model.layers.0.self_attn.{n}.weight": part.reshape(-1, stored.shape[1]) for n, part in names}


def tensorrt_llm(foreign: Mapping[str, Any]) -> Changes:
    """Each row of the weights is A and then B, flat; the scale is in B already."""
    (row,), ((module, layer, rank),) = array(foreign["model.lora_weights"])[0], foreign["model.lora_config"][0]
    assert module == 1  # attn_q
    width, height = foreign["in"], foreign["out"]
    a = row[: rank * width].reshape(rank, width)
    b = row[rank * width : rank * (width + height)].reshape(height, rank)
    return {f"model.layers.{layer}.self_attn.q_proj.weight": b @ a}


def onnx_adapter(foreign: Mapping[str, Any]) -> Changes:
    """x @ A @ B in the graph, where W is (in, out)."""
    a, b = (array(foreign[f"model.layers.0.attn.q_proj.lora_{part}.MatMul.weight"]) for part in "AB")
    return {"model.layers.0.self_attn.q_proj.weight": (a @ b).T}


def keras(foreign: Mapping[str, Any]) -> Changes:
    """EinsumDense: the product over the last axis of the kernel; the kernel (d, h, k) as a matrix (h·k, d)."""
    kernel = array(foreign["lora_kernel_a"]) @ array(foreign["lora_kernel_b"])
    change = foreign["lora_alpha"] / foreign["lora_rank"] * kernel
    return {"model.layers.0.self_attn.q_proj.weight": change.reshape(len(change), -1).T}


def litgpt(foreign: Mapping[str, Any]) -> Changes:
    """Parts of unequal height share one grouped product."""
    a, b = array(foreign["transformer.h.0.attn.qkv.lora_A"]), array(foreign["transformer.h.0.attn.qkv.lora_B"])
    heights, enabled, r = foreign["heights"], foreign["enable_lora"], foreign["lora_r"]
    change = np.zeros((sum(heights), a.shape[1]))
    row = start = rank = 0
    for height, on in zip(heights, enabled, strict=True):
        if on:
            part = b[start : start + height] @ a[rank : rank + r]
            change[row : row + height] = foreign["lora_alpha"] / r * part
            start, rank = start + height, rank + r
        row += height
    return {"transformer.h.0.attn.qkv.weight": change}


FORMULAS: Mapping[str, Callable[[Mapping[str, Any]], Changes]] = {
    "loralib": loralib,
    "kohya": kohya,
    "diffusers": diffusers,
    "mlx": mlx,
    "gguf": gguf,
    "torchtune": torchtune,
    "megatron": megatron,
    "tensorrt-llm": tensorrt_llm,
    "onnx-adapter": onnx_adapter,
    "keras": keras,
    "litgpt": litgpt,
}


def test_every_page_has_a_formula() -> None:
    """No page is without an example that is computed."""
    assert set(FORMULAS) == {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example(page: Path) -> None:
    """s·B·A of the targets in the example is what the foreign program computes from the foreign tensors."""
    (body,) = FENCE.findall(text(page))
    example = json.loads(body)
    expected = FORMULAS[page.stem](example["foreign"])
    assert example["targets"].keys() == expected.keys()
    for name, target in example["targets"].items():
        a, b = array(target["A"]), array(target["B"])
        change = target["scale"] * np.tensordot(b.reshape(b.shape[:2]), a, axes=1)
        np.testing.assert_allclose(change, expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_segments_of_an_example(page: Path) -> None:
    """Segments in an example are sound, and fill the outputs of their target."""
    (body,) = FENCE.findall(text(page))
    for target in json.loads(body)["targets"].values():
        if "segments" in target:
            parts = tuple(Segment(part["name"], part["length"]) for part in target["segments"]["parts"])
            segments = Segments(parts, target["segments"].get("interleave", 1))
            assert sorted(row for found in segments.rows().values() for row in found) == list(range(len(target["B"])))
