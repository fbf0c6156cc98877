"""R-009 and R-011 to R-038: one native file broken for each way of breaking each rule."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_registry.adapter import LAYOUTS, Adapter, Kind, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError
from lora_registry.format.document import from_document, tensor_key, to_document
from lora_registry.format.identity import content_digest
from lora_registry.format.limits import AXIS_LENGTH, JSON_DEPTH
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.rules import RULES, check_document

LINEAR, EMBEDDING, CONV = "layers.0.q_proj.weight", "embed.weight", "conv.weight"
EXPERTS, BIAS, FULL, TOKENS = "experts.down_proj", "layers.0.q_proj.bias", "norm.weight", "lm_head.weight"
SOME_DIGEST = "sha256:" + "0" * 64


class Draft:
    """A native file before it is written: everything may still be changed, for better or worse."""

    def __init__(self, adapter: Adapter) -> None:
        self.document: Any = deepcopy(to_document(adapter))
        self.tensors = {tensor_key(t.name, role): tensor for t in adapter for role, tensor in t.tensors.items()}
        self.metadata: dict[str, str] | None = None
        self.text = ""

    def set(self, target: str, **fields: Any) -> None:
        """Change fields of a target."""
        self.document["targets"][target].update(fields)

    def drop(self, target: str, field: str) -> None:
        """Take a field away from a target."""
        del self.document["targets"][target][field]

    def put(self, target: str, role: str, *shape: int, dtype: str = "F32") -> None:
        """Replace a tensor, or add one, with its digest."""
        tensor = Tensor(dtype, shape, bytes(length_of(dtype, shape)))
        self.tensors[f"{target}/{role}"] = tensor
        self.document["targets"][target]["tensors"][role] = str(tensor.digest())

    def take(self, target: str, role: str) -> None:
        """Take a tensor away, from the document and from the file."""
        del self.tensors[f"{target}/{role}"]
        del self.document["targets"][target]["tensors"][role]

    def rename(self, old: str, new: str) -> None:
        """Give a target another name."""
        self.document["targets"][new] = self.document["targets"].pop(old)
        for key in [key for key in self.tensors if key.startswith(f"{old}/")]:
            self.tensors[f"{new}/{key.removeprefix(old + '/')}"] = self.tensors.pop(key)


def length_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Length of a tensor in bytes."""
    size = DTYPES[dtype].size
    for length in shape:
        size *= length
    return size


Break = Callable[[Draft], object]


def top(**fields: Any) -> Break:
    """Change fields of the document."""
    return lambda draft: draft.document.update(fields)


def of(target: str, **fields: Any) -> Break:
    """Change fields of one target."""
    return lambda draft: draft.set(target, **fields)


def without(target: str, field: str) -> Break:
    """Drop a field of one target."""
    return lambda draft: draft.drop(target, field)


def tensor(target: str, role: str, *shape: int, dtype: str = "F32") -> Break:
    """Replace or add a tensor."""
    return lambda draft: draft.put(target, role, *shape, dtype=dtype)


def says(**changes: Any) -> Break:
    """Set attributes of the draft itself."""
    return lambda draft: vars(draft).update(changes)


def no_targets(**fields: Any) -> Break:
    """Take all targets and tensors away, and say ``fields`` instead."""

    def change(draft: Draft) -> None:
        del draft.document["targets"]
        draft.document.update(fields)
        draft.tensors.clear()

    return change


def no_factors(draft: Draft) -> None:
    """Two factors of rank 0."""
    draft.put(EMBEDDING, "A", 0, 9)
    draft.put(EMBEDDING, "B", 4, 0)


def three_groups(draft: Draft) -> None:
    """A conv of rank 3 in 3 groups, with 4 outputs."""
    draft.set(CONV, groups=3)
    draft.put(CONV, "A", 3, 9, 3, 3)
    draft.put(CONV, "B", 4, 1, 1, 1)


BROKEN: list[tuple[str, str, Break]] = [
    ("R-009", "a key of more than 256 characters", lambda draft: draft.rename(FULL, "n" * 251)),
    ("R-011", "no key 'loreg'", says(metadata={"format": "pt"})),
    ("R-011", "no string map at all", says(metadata={})),
    ("R-011", "a second key", says(metadata={"loreg": "{}", "format": "pt"})),
    ("R-012", "not JSON", says(text="{")),
    ("R-012", "an array", says(text="[]")),
    ("R-012", "NaN as a scale", says(text='{"loreg":1,"targets":{"w":{"scale":NaN}}}')),
    ("R-012", "one target twice", says(text='{"loreg":1,"targets":{"w":{},"w":{}}}')),
    ("R-012", "an integer that parsers read differently", top(info={"seed": 1 << 53})),
    ("R-012", "nested too deep", says(text='{"x":' + "[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1) + "}")),
    ("R-013", "another major version", top(loreg=2)),
    ("R-013", "version 0", top(loreg=0)),
    ("R-013", "a version that is a string", top(loreg="1")),
    ("R-013", "a version that is true", top(loreg=True)),
    ("R-013", "a version with a fraction", says(text='{"loreg":1.0}')),
    ("R-013", "no version", lambda draft: draft.document.pop("loreg")),
    ("R-014", "requirements as a list", top(requires=["x"])),
    ("R-014", "null requirements", top(requires=None)),
    ("R-014", "requirements for something else", top(requires={"merge": []})),
    ("R-014", "a name that is a number", top(requires={"write": [1]})),
    ("R-014", "a name in upper case", top(requires={"write": ["X"]})),
    ("R-014", "names that are not sorted", top(requires={"write": ["b", "a"]})),
    ("R-014", "a name twice", top(requires={"write": ["a", "a"]})),
    ("R-015", "an unknown feature", top(requires={"read": ["com.example.gate"]})),
    ("R-016", "an extension without a domain", top(extensions={"gate": {}})),
    ("R-016", "an extension that is a number", top(extensions={"com.example.gate": 1})),
    ("R-016", "extensions as a list", top(extensions=[])),
    ("R-020", "no targets", no_targets(targets={})),
    ("R-020", "targets as a list", no_targets(targets=[1])),
    ("R-020", "targets missing", no_targets()),
    ("R-021", "an empty name", lambda draft: draft.rename(FULL, "")),
    ("R-022", "an unknown kind", of(LINEAR, kind="lora")),
    ("R-022", "no kind", without(LINEAR, "kind")),
    ("R-022", "a kind that is null", of(LINEAR, kind=None)),
    ("R-023", "axes in an order that the kind does not have", of(EMBEDDING, layout=["out", "in"])),
    ("R-023", "a conv kernel that comes first", of(CONV, layout=["k", "k", "in", "out"])),
    ("R-023", "no layout", without(LINEAR, "layout")),
    ("R-023", "a layout in one string", of(LINEAR, layout="out,in")),
    ("R-023", "a layout for a full target", of(FULL, layout=["out"])),
    ("R-024", "no shape", without(LINEAR, "shape")),
    ("R-024", "a shape that is null", of(TOKENS, shape=None)),
    ("R-024", "an axis too many", of(LINEAR, shape=[6, 4, 1])),
    ("R-024", "an axis too few", of(BIAS, shape=[])),
    ("R-024", "an empty axis", of(LINEAR, shape=[6, 0])),
    ("R-024", "an axis beyond the limit", of(LINEAR, shape=[6, AXIS_LENGTH + 1])),
    ("R-024", "true as a length", of(BIAS, shape=[True])),
    ("R-024", "nine axes", of(FULL, shape=[1] * 9)),
    ("R-025", "no scale", without(LINEAR, "scale")),
    ("R-025", "a scale that is a string", of(LINEAR, scale="2")),
    ("R-025", "a scale that is true", of(LINEAR, scale=True)),
    ("R-025", "a scale that is null", of(BIAS, scale=None)),
    ("R-025", "a scale where nothing is scaled", of(FULL, scale=1.0)),
    ("R-025", "a null scale where nothing is scaled", of(TOKENS, scale=None)),
    ("R-026", "one factor only", lambda draft: draft.take(LINEAR, "B")),
    ("R-026", "a magnitude for experts", tensor(EXPERTS, "magnitude", 5)),
    ("R-026", "a value beside a delta", tensor(BIAS, "value", 6)),
    ("R-026", "a role that nobody knows", tensor(LINEAR, "C", 2, 2)),
    ("R-026", "factors beside a full value", tensor(FULL, "A", 1, 1)),
    ("R-027", "a tensor of no target", lambda draft: draft.tensors.update({"stray": Tensor("U8", (1,), b"1")})),
    ("R-027", "a tensor that is stated and not there", lambda draft: draft.tensors.pop(f"{LINEAR}/A")),
    ("R-027", "a tensor that is not stated", lambda draft: draft.document["targets"][LINEAR]["tensors"].pop("value")),
    ("R-028", "factors of integers", tensor(EMBEDDING, "A", 2, 9, dtype="I32")),
    ("R-028", "a delta of booleans", tensor(BIAS, "delta", 6, dtype="BOOL")),
    ("R-028", "a magnitude of bytes", tensor(LINEAR, "magnitude", 6, dtype="U8")),
    ("R-029", "ranks that differ", tensor(LINEAR, "B", 6, 3)),
    ("R-029", "A for another input", tensor(LINEAR, "A", 2, 5)),
    ("R-029", "A transposed", tensor(EMBEDDING, "A", 9, 2)),
    ("R-029", "A without the experts", tensor(EXPERTS, "A", 2, 4)),
    ("R-029", "A of one axis", tensor(LINEAR, "A", 8)),
    ("R-029", "A of no axis", tensor(LINEAR, "A")),
    ("R-029", "a conv A that ignores the groups", tensor(CONV, "A", 2, 3, 3, 3)),
    ("R-029", "a conv B that ignores the groups", tensor(CONV, "B", 4, 2, 1, 1)),
    ("R-029", "a conv B without its kernel axes", tensor(CONV, "B", 4, 1)),
    ("R-030", "a magnitude for the inputs", tensor(LINEAR, "magnitude", 4)),
    ("R-030", "a magnitude with a second axis", tensor(LINEAR, "magnitude", 1, 6)),
    ("R-031", "a value of another shape", tensor(LINEAR, "value", 4, 6)),
    ("R-031", "a delta of another length", tensor(BIAS, "delta", 5)),
    ("R-031", "a full value of another shape", tensor(FULL, "value", 2, 2)),
    ("R-031", "a value for other rows", tensor(TOKENS, "value", 3, 4)),
    ("R-031", "rows of another width", tensor(TOKENS, "value", 2, 5)),
    ("R-032", "groups that do not divide the rank", of(CONV, groups=4)),
    ("R-032", "groups that do not divide the outputs", three_groups),
    ("R-032", "no groups at all", of(CONV, groups=0)),
    ("R-032", "groups that are true", of(CONV, groups=True)),
    ("R-032", "groups that are null", of(CONV, groups=None)),
    ("R-032", "groups of a linear target", of(LINEAR, groups=1)),
    ("R-033", "no rows", without(TOKENS, "rows")),
    ("R-033", "rows in descending order", of(TOKENS, rows=[7, 1])),
    ("R-033", "one row twice", of(TOKENS, rows=[7, 7])),
    ("R-033", "a row beyond the base", of(TOKENS, rows=[1, 9])),
    ("R-033", "a negative row", of(TOKENS, rows=[-1, 1])),
    ("R-033", "a row that is true", of(TOKENS, rows=[True, 7])),
    ("R-033", "rows of a linear target", of(LINEAR, rows=[1])),
    ("R-034", "a digest by another algorithm", of(BIAS, tensors={"delta": "md5:" + "0" * 32})),
    ("R-034", "a digest in upper case", of(BIAS, tensors={"delta": "sha256:" + "A" * 64})),
    ("R-034", "a digest that is null", of(BIAS, tensors={"delta": None})),
    ("R-035", "a digest of other bytes", of(BIAS, tensors={"delta": SOME_DIGEST})),
    ("R-036", "a fingerprint of forty digits", of(LINEAR, fingerprint="sha256:" + "f" * 40)),
    ("R-036", "a fingerprint that is null", of(LINEAR, fingerprint=None)),
    ("R-037", "a base that is a string", top(base="example/base")),
    ("R-037", "a revision that is a number", top(base={"revision": 1})),
    ("R-037", "a license that is a list", top(info={"license": ["MIT"]})),
    ("R-037", "an origin that is null", top(origin=None)),
    ("R-038", "factors of rank 0", no_factors),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "case", "change"), BROKEN, ids=[f"{rule}-{case}" for rule, case, _ in BROKEN])
def test_broken_document(rule: str, case: str, change: Break, adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """A file that breaks one rule is reported with that rule and no other, and is not read."""
    draft = Draft(adapter)
    change(draft)
    path = make_file(draft.document, draft.tensors, metadata=draft.metadata, text=draft.text)
    findings = check_file(path)
    assert {finding.rule for finding in findings} == {rule}
    if rule == "R-035":
        assert read_adapter(path)  # reading looks at the header only
    else:
        with pytest.raises(InvalidInputError, match=rule):
            read_adapter(path)


def test_every_rule_is_broken_above() -> None:
    """The table has a case for each rule but those about bytes, which test_container breaks."""
    framing = {f"R-{number:03}" for number in (*range(1, 9), 10)}
    assert {rule for rule, _, _ in BROKEN} == set(RULES) - framing


def test_sound_draft(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """The draft that the table breaks has nothing wrong with it."""
    draft = Draft(adapter)
    assert check_file(make_file(draft.document, draft.tensors)) == []


def test_unsound_name_has_unsound_keys(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """A space in a target's name breaks the rule for names and that for keys."""
    draft = Draft(adapter)
    draft.rename(FULL, "norm weight")
    assert {finding.rule for finding in check_file(make_file(draft.document, draft.tensors))} == {"R-009", "R-021"}


def test_every_problem_is_reported(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """Problems in different targets are all found, each with its place."""
    draft = Draft(adapter)
    draft.set(LINEAR, scale=None)
    draft.set(EMBEDDING, kind="x")
    draft.document["base"] = []
    places = {finding.rule: finding.place for finding in check_file(make_file(draft.document, draft.tensors))}
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
    draft = Draft(adapter)
    for _ in range(data.draw(st.integers(1, 2))):
        parent, key = data.draw(st.sampled_from(places(draft.document)))
        parent[key] = data.draw(JSON)
    findings = check_document(draft.document, {key: (t.dtype, t.shape) for key, t in draft.tensors.items()})
    assert {finding.rule for finding in findings} <= set(RULES)
    if not findings:
        content_digest(from_document(draft.document, draft.tensors))


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


def test_every_kind_has_layouts() -> None:
    """No kind is without a layout, and the sample has all kinds."""
    assert set(LAYOUTS) == set(Kind)


def test_rows_need_no_shape(adapter: Adapter, make_file: Callable[..., Path]) -> None:
    """A tokens target need not know the shape of its base tensor."""
    draft = Draft(adapter)
    draft.drop(TOKENS, "shape")
    path = make_file(draft.document, draft.tensors)
    assert check_file(path) == []
    assert read_adapter(path).target(TOKENS).shape is None


def test_stated_digests_are_those_of_the_bytes(adapter: Adapter) -> None:
    """The document of a new adapter states the digest of each tensor."""
    record: Any = to_document(adapter)["targets"]
    assert record[BIAS]["tensors"]["delta"] == str(Digest.of(adapter.target(BIAS).tensors["delta"].data))
