"""What the rules say beyond single files: those that break them are the vectors (spec/vectors, tests/conformance)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Adapter, Tensor
from lora_registry.digest import Digest
from lora_registry.format.document import from_document, tensor_key, to_document
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.rules import RULES, check_document

LINEAR, EMBEDDING = "layers.0.q_proj.weight", "embed.weight"
BIAS, TOKENS = "layers.0.q_proj.bias", "lm_head.weight"
SOME_DIGEST = "sha256:" + "0" * 64


Draft = tuple[Any, dict[str, Tensor]]


def drafted(adapter: Adapter) -> Draft:
    """The document of an adapter, to be changed, and the tensors beside it."""
    tensors = {tensor_key(t.name, role): tensor for t in adapter for role, tensor in t.tensors.items()}
    return deepcopy(to_document(adapter)), tensors


def test_every_problem_is_reported(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """Problems in different targets are all found, each with its place."""
    document, tensors = drafted(adapter)
    document["targets"][LINEAR]["scale"] = None
    document["targets"][EMBEDDING]["kind"] = "x"
    document["base"] = []
    places = {finding.rule: finding.place for finding in check_file(make_file(document, tensors))}
    assert places == {"R-025": f"targets/{LINEAR}/scale", "R-022": f"targets/{EMBEDDING}/kind", "R-037": "base"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.floats(-2, 2)
    | st.sampled_from(["", "A", "B", "out", "in", "k", "loreg", "conv", "tokens", "full", SOME_DIGEST]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["A", "B", "value", "read", "kind", "shape", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place inside of a document: the object or list, and the key or index in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *places(item))]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_reported_or_harmless(adapter: Adapter, data: st.DataObject) -> None:
    """Whatever stands in any place of a document, checking it returns findings; what has none can be read."""
    document, tensors = drafted(adapter)
    for _ in range(data.draw(st.integers(1, 2))):
        parent, key = data.draw(st.sampled_from(places(document)))
        parent[key] = data.draw(JSON)
    findings = check_document(document, {key: (t.dtype, t.shape) for key, t in tensors.items()})
    assert {finding.rule for finding in findings} <= set(RULES)
    if not findings:
        content_digest(from_document(document, tensors))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_that_divide(groups: int) -> None:
    """A conv may have any number of groups that divides its rank and its outputs."""
    document: Any = {
        "loreg": 1,
        "targets": {
            "c": {
                "kind": "conv",
                "layout": ["out", "in", "k"],
                "shape": [12, 2, 5],
                "scale": 1,
                "groups": groups,
                "tensors": {"A": SOME_DIGEST, "B": SOME_DIGEST},
            }
        },
    }
    tensors = {"c/A": ("F32", (6, 2 * groups, 5)), "c/B": ("F32", (12, 6 // groups, 1))}
    assert check_document(document, tensors) == []


def test_rows_need_no_shape(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """A tokens target need not know the shape of its base tensor."""
    document, tensors = drafted(adapter)
    del document["targets"][TOKENS]["shape"]
    path = make_file(document, tensors)
    assert check_file(path) == []
    assert read_adapter(path).target(TOKENS).shape is None


def test_stated_digests_are_those_of_the_bytes(adapter: Adapter) -> None:
    """The document of a new adapter states the digest of each tensor."""
    record: Any = to_document(adapter)["targets"]
    assert record[BIAS]["tensors"]["delta"] == str(Digest.of(adapter.target(BIAS).tensors["delta"].data))
