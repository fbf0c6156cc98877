"""Files in which a target breaks a rule: R-022 to R-036, and R-042 to R-045."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import canonical
import samples
from container import Tensor, tensor
from draft import Draft
from samples import DIGEST, IN_OUT, OUT_IN
from vector import Vector, invalid, needed

AXIS_LENGTH = 1 << 40


def f32(*shape: int) -> Tensor:
    """A tensor of binary32."""
    return tensor("F32", shape)


def without(draft: Draft, field: str) -> Draft:
    """A draft without a field of its target."""
    del draft.target("w")[field]
    return draft


def lacking(draft: Draft, *roles: str) -> Draft:
    """A draft without these tensors of its target."""
    for role in roles:
        draft.take("w", role)
    return draft


def with_(draft: Draft, **tensors: Tensor) -> Draft:
    """A draft with more tensors, or other ones."""
    for role, item in tensors.items():
        draft.put("w", role, item)
    return draft


def of(draft: Draft, **fields: Any) -> Draft:
    """A draft with other fields of its target."""
    draft.target("w").update(fields)
    return draft


def stating(digest: Any) -> Draft:
    """A bias whose one digest is this."""
    return of(samples.bias(), tensors={"delta": digest})


def shapeless() -> Draft:
    """A target that is a list."""
    return Draft({"loreg": 1, "targets": {"w": ["linear"]}})


def fused(segments: Any, rows: int = 6) -> Draft:
    """A linear target of so many outputs with these segments."""
    return samples.linear({"B": f32(rows, 2)}, shape=[rows, 4], segments=segments)


def halves(*parts: Any, **fields: Any) -> Draft:
    """Six outputs in these parts."""
    return fused({"parts": list(parts), **fields})


def part(name: Any = "q", length: Any = 6, **rope: Any) -> dict[str, Any]:
    """A segment."""
    return {"name": name, "length": length} | ({"rope": rope} if rope else {})


def spelled(draft: Draft, old: str, new: str) -> bytes:
    """A draft with one part of its document in another spelling."""
    text = canonical.encode(draft.document).decode()
    assert old in text
    return draft.file(text.replace(old, new, 1))


KIND = (
    ("unknown", "a kind that nobody knows", samples.linear(kind="lora")),
    ("missing", "no kind", without(samples.linear(), "kind")),
    ("null", "a kind that is null", samples.linear(kind=None)),
    ("upper-case", "a kind in upper case", samples.linear(kind="Linear")),
    ("object-null", "a target that is null", Draft({"loreg": 1, "targets": {"w": None}})),
    ("no-object", "a target that is a list", shapeless()),
)
LAYOUT = (
    ("embedding-out-in", "an order that the kind does not have", samples.embedding(layout=OUT_IN)),
    ("kernel-first", "a kernel that comes first", samples.conv(2, layout=["k", "k", "in", "out"])),
    ("missing", "no layout", without(samples.linear(), "layout")),
    ("null", "a layout that is null", samples.linear(layout=None)),
    ("string", "a layout in one string", samples.linear(layout="out,in")),
    ("full", "a layout of a full target", samples.full(layout=["out"])),
    ("sparse", "a layout of a sparse target", samples.requiring(of(samples.sparse(), layout=OUT_IN), "sparse")),
    ("axis-twice", "an axis twice", samples.linear(layout=["out", "out"])),
)
SHAPE = (
    ("missing", "no shape", without(samples.linear(), "shape")),
    ("null", "a shape that is null", samples.tokens(shape=None)),
    ("axis-too-many", "more axes than the layout", samples.linear(shape=[3, 4, 1])),
    ("axis-too-few", "fewer axes than the layout", samples.bias(shape=[])),
    ("empty-axis", "an axis of length 0", samples.linear(shape=[3, 0])),
    ("negative-axis", "an axis of negative length", samples.linear(shape=[3, -4])),
    ("axis-limit", "an axis beyond the limit", samples.tokens(shape=[AXIS_LENGTH + 1, 3])),
    ("true", "true as a length", samples.bias(shape=[True])),
    ("string", "a length that is a string", samples.bias(shape=["3"])),
    ("nine-axes", "an axis more than a tensor has", samples.full(shape=[1] * 9)),
)
SCALE = (
    ("missing", "no scale", without(samples.linear(), "scale")),
    ("string", "a scale that is a string", samples.linear(scale="2")),
    ("true", "a scale that is true", samples.linear(scale=True)),
    ("null", "a scale that is null", samples.bias(scale=None)),
    ("list", "a scale for each rank", samples.linear(scale=[1, 1])),
    ("full", "a scale of a full target", samples.full(scale=1)),
    ("tokens-null", "a null scale of a tokens target", samples.tokens(scale=None)),
)
ROLES = (
    ("no-b", "one factor only", lacking(samples.linear(), "B")),
    ("no-roles", "no tensor at all", lacking(samples.linear(), "A", "B")),
    ("experts-magnitude", "a magnitude of experts", samples.experts({"magnitude": f32(3)})),
    ("bias-value", "a value beside a delta", with_(samples.bias(), value=f32(3))),
    ("unknown", "a role that nobody knows", samples.linear({"C": f32(2, 2)})),
    ("lower-case", "a role in lower case", samples.linear({"a": f32(2, 4)})),
    ("full-factor", "a factor beside a full value", with_(samples.full(), A=f32(1, 1))),
    ("linear-delta", "a delta beside factors", samples.linear({"delta": f32(3)})),
    ("loha-half", "one product of two", lacking(samples.loha(), "A2", "B2")),
    ("lokr-neither", "a matrix in neither form", lacking(samples.lokr(), "C1")),
    ("lokr-both", "a matrix in both forms", samples.lokr(A1=f32(1, 3), B1=f32(2, 1))),
    ("sparse-no-index", "changes without positions", lacking(samples.sparse(), "index")),
    ("tensors-list", "tensors that are a list", None),
)
TYPES = (
    ("a-i32", "a factor of integers", samples.linear({"A": tensor("I32", (2, 4))})),
    ("delta-bool", "a delta of booleans", samples.bias("BOOL")),
    ("magnitude-u8", "a magnitude of bytes", samples.linear({"magnitude": tensor("U8", (3,))})),
    ("value-i8", "a value of integers in place of W", samples.linear({"value": tensor("I8", (3, 4))})),
    ("index-i32", "positions of 32 bits", with_(samples.sparse(), index=tensor("I32", (3,), [0, 5, 11]))),
    ("index-u64", "positions without a sign", with_(samples.sparse(), index=tensor("U64", (3,), [0, 5, 11]))),
    ("sparse-delta", "changes of integers", samples.sparse(dtype="I16")),
)
FACTORS = (
    ("ranks", "ranks that differ", samples.linear({"B": f32(3, 3)})),
    ("inputs", "A for another input", samples.linear({"A": f32(2, 5)})),
    ("outputs", "B for another output", samples.linear({"B": f32(4, 2)})),
    ("transposed-a", "A transposed", samples.linear({"A": f32(4, 2)})),
    ("transposed-b", "B transposed", samples.linear({"B": f32(2, 3)})),
    ("swapped", "factors in each other's place, on a base that is stored transposed",
     samples.linear({"A": f32(4, 2), "B": f32(2, 3)}, layout=IN_OUT, shape=[4, 3])),
    ("embedding-transposed", "A with the vocabulary first", samples.embedding({"A": f32(5, 2)})),
    ("experts-missing", "A without the axis of experts", samples.experts({"A": f32(2, 4)})),
    ("experts-count", "B for another number of experts", samples.experts({"B": f32(3, 3, 2)})),
    ("one-axis", "A of one axis", samples.linear({"A": f32(8)})),
    ("no-axis", "A of no axis", samples.linear({"A": f32()})),
    ("conv-a-groups", "a conv A that ignores the groups", of(samples.conv(2), groups=2)),
    ("conv-b-groups", "a conv B that ignores the groups", with_(samples.conv(1, groups=2), B=f32(4, 2, 1))),
    ("conv-b-flat", "a conv B without kernel axes", samples.conv(2, {"B": f32(4, 2)})),
    ("conv-kernel", "A with another kernel", samples.conv(1, {"A": f32(2, 2, 3)})),
    ("conv-b-kernel", "the kernel in B", samples.conv(1, {"A": f32(2, 2, 1), "B": f32(4, 2, 2)})),
    ("loha-ranks", "ranks of one product that differ", samples.loha(B2=f32(3, 2))),
    ("loha-kernel", "a product without the kernel", samples.loha((2,), A2=f32(1, 4))),
    ("lokr-product", "matrices whose product has another shape", samples.lokr((True, True), C1=f32(3, 3))),
    ("loha-no-axis", "a factor of no axis", samples.loha(A1=f32())),
    ("loha-inputs", "a product for another input", samples.loha(A2=f32(1, 3))),
    ("loha-outputs", "a product for another output", samples.loha(B1=f32(4, 2))),
    ("lokr-inputs", "matrices whose product has other inputs", samples.lokr((True, True), C1=f32(2, 2))),
    ("lokr-no-axis", "a matrix of no axis", samples.lokr((True, True), C1=f32())),
    ("lokr-one-axis", "a matrix of one axis", samples.lokr((True, True), C2=f32(3))),
    ("lokr-a-one-axis", "a factor of one axis", samples.lokr(A2=f32(2))),
    ("lokr-b-no-axis", "a factor of no axis", samples.lokr(B2=f32())),
    ("lokr-ranks", "ranks of one matrix that differ", samples.lokr((True, False), B2=f32(3, 2))),
    ("lokr-kernel", "a kernel in the first matrix", samples.lokr((True, True), (2,), C1=f32(2, 3, 2))),
)  # fmt: skip
MAGNITUDE = (
    ("inputs", "a magnitude of the inputs", samples.linear({"magnitude": f32(4)})),
    ("two-axes", "a magnitude with a second axis", samples.linear({"magnitude": f32(1, 3)})),
    ("conv", "a magnitude with kernel axes", samples.conv(2, {"magnitude": f32(1, 4, 1, 1)})),
    ("embedding", "a magnitude of the vocabulary", samples.embedding({"magnitude": f32(5)})),
    ("loha", "a magnitude of the inputs of a loha target", samples.loha(magnitude=f32(4))),
)
VALUE = (
    ("linear", "a value in another axis order", samples.linear({"value": f32(4, 3)})),
    ("bias", "a delta of another length", with_(samples.bias(), delta=f32(2))),
    ("full", "a full value of another shape", samples.full(shape=[2, 2])),
    ("tokens-rows", "values for other rows", with_(samples.tokens(), value=f32(3, 3))),
    ("tokens-width", "rows of another width", with_(samples.tokens(), value=f32(2, 4))),
    ("tokens-flat", "rows in one axis", with_(samples.tokens(), value=f32(6))),
    ("sparse-lengths", "fewer changes than positions", with_(samples.sparse(), delta=f32(2))),
    (
        "tokens-no-shape",
        "rows in one axis, for a base of unknown shape",
        without(with_(samples.tokens(), value=f32(2)), "shape"),
    ),
    ("tokens-no-axis", "rows in no axis", with_(samples.tokens(rows=[1]), value=f32())),
    (
        "sparse-both-axes",
        "positions and changes with two axes",
        with_(samples.sparse(), index=tensor("I64", (3, 1), [0, 5, 11]), delta=f32(3, 1)),
    ),
    (
        "sparse-no-axis",
        "a position and a change of no axis",
        with_(samples.sparse(), index=tensor("I64", (), [0]), delta=f32()),
    ),
    ("sparse-axes", "changes with two axes", with_(samples.sparse(), delta=f32(3, 1))),
)
GROUPS = (
    ("rank", "groups that do not divide the rank", with_(samples.conv(1, groups=4), A=f32(2, 8, 2), B=f32(4, 1, 1))),
    ("outputs", "groups that do not divide the outputs",
     with_(samples.conv(1, groups=3), A=f32(3, 6, 2), B=f32(4, 1, 1))),
    ("zero", "no groups at all", of(samples.conv(1), groups=0)),
    ("true", "groups that are true", of(samples.conv(1), groups=True)),
    ("null", "groups that are null", of(samples.conv(1), groups=None)),
    ("linear", "groups of a linear target", samples.linear(groups=1)),
    ("loha", "groups of a loha target", of(samples.loha((2,)), groups=1)),
)  # fmt: skip
ROWS = (
    ("missing", "no rows", without(samples.tokens(), "rows")),
    ("empty", "a list of no rows", of(samples.tokens(), rows=[])),
    ("descending", "rows in descending order", of(samples.tokens(), rows=[4, 1])),
    ("length-descending", "added rows in descending order", samples.tokens(rows=[6, 5], length=7)),
    ("twice", "one row twice", of(samples.tokens(), rows=[1, 1])),
    ("beyond", "a row beyond the base", of(samples.tokens(), rows=[1, 5])),
    ("negative", "a negative row", of(samples.tokens(), rows=[-1, 1])),
    ("true", "a row that is true", of(samples.tokens(), rows=[True, 4])),
    ("beyond-length", "a row beyond the length", samples.tokens(rows=[5, 6, 7], length=7)),
    ("linear", "rows of a linear target", samples.linear(rows=[1])),
)
LENGTH = (
    ("same", "a length that adds nothing", samples.tokens(length=5)),
    ("shorter", "a length that takes rows away", samples.tokens(rows=[1, 3], length=4)),
    ("incomplete", "an added row that is not given", samples.tokens(rows=[5, 7], length=8)),
    ("no-added", "no added row is given", samples.tokens(length=6)),
    ("no-shape", "a length beside no shape", without(samples.tokens(rows=[5], length=6), "shape")),
    ("true", "a length that is true", samples.tokens(shape=[5, 3], length=True)),
    ("fraction", "a length with a fraction", None),
    ("linear", "a length of a linear target", samples.linear(length=9)),
    ("string", "a length that is a string", samples.tokens(rows=[5], length="6")),
    ("null", "a length that is null", samples.tokens(length=None)),
    (
        "axis-limit",
        "a length beyond the limit of axes",
        samples.tokens(shape=[AXIS_LENGTH, 3], rows=[AXIS_LENGTH], length=AXIS_LENGTH + 1),
    ),
    ("rows-behind", "a row behind the length in place of the added one", samples.tokens(rows=[6], length=6)),
    ("first-missing", "the first of two added rows is not given", samples.tokens(rows=[1, 6], length=7)),
    ("billions", "a length of a million million rows, of which two are given", samples.tokens(length=10**12)),
)
DIGESTS = (
    ("md5", "a digest by another algorithm", stating("md5:" + "0" * 32)),
    ("upper-case", "a digest in upper case", stating("sha256:" + "A" * 64)),
    ("prefix", "a digest without its prefix", stating("0" * 64)),
    ("long", "a digest with a digit too many", stating(DIGEST + "0")),
    ("space", "a digest with a line feed behind it", stating(DIGEST + "\n")),
    ("null", "a digest that is null", stating(None)),
    ("number", "a digest that is a number", stating(0)),
)
FINGERPRINT = (
    ("short", "a fingerprint of forty digits", samples.linear(fingerprint="sha256:" + "f" * 40)),
    ("upper-case", "a fingerprint in upper case", samples.linear(fingerprint="sha256:" + "F" * 64)),
    ("null", "a fingerprint that is null", samples.linear(fingerprint=None)),
    ("sha512", "a fingerprint by another algorithm", samples.full(fingerprint="sha512:" + "0" * 128)),
)
SEGMENTS = (
    ("list", "segments that are a list", fused([part()])),
    ("null", "segments that are null", fused(None)),
    ("no-parts", "segments without parts", fused({"interleave": 1})),
    ("empty", "no part", halves()),
    ("parts-object", "parts that are an object", fused({"parts": {"q": 6}})),
    ("part-string", "a part that is a string", halves("q")),
    ("rope-null", "a rope that is null", halves(part() | {"rope": None})),
    ("rope-member", "a member of rope that is not known", halves(part(head=2, order="pairs", base=10000))),
    ("head-zero", "a head of no outputs", halves(part(head=0, order="pairs"))),
    ("head-string", "a head that is a string", halves(part(head="2", order="pairs"))),
    ("rotary-zero", "no rotated output", halves(part(head=2, order="pairs", rotary=0))),
    ("rotary-null", "a rotary that is null", halves(part(head=2, order="pairs", rotary=None))),
    ("name-empty", "a name of no characters", halves(part(""))),
    ("no-name", "a part without a name", halves({"length": 6})),
    ("no-length", "a part without a length", halves({"name": "q"})),
    ("sum-short", "lengths that add up to less", halves(part(length=4))),
    ("sum-long", "lengths that add up to more", halves(part("q", 4), part("k", 4))),
    ("same-name", "two parts of one name", halves(part("q", 3), part("q", 3))),
    ("length-zero", "a part of no output", halves(part("q", 6), part("k", 0))),
    ("length-true", "a length that is true", fused({"parts": [part("q", True)]}, 1)),
    ("name-number", "a name that is a number", halves(part(1))),
    ("member", "a member that is not known", halves(part() | {"role": "query"})),
    ("other-member", "a second member that is not known", halves(part(), groups=1)),
    ("interleave-divides", "blocks that do not divide every part", halves(part("q", 4), part("k", 2), interleave=4)),
    ("interleave-zero", "no blocks", halves(part(), interleave=0)),
    ("interleave-null", "blocks that are null", halves(part(), interleave=None)),
    ("head", "a head that does not divide its part", halves(part(head=4, order="halves"))),
    ("order", "an order that nobody knows", halves(part(head=2, order="thirds"))),
    ("no-order", "a rope without its order", halves(part(head=2))),
    ("rotary-odd", "an odd number of rotated outputs", halves(part(head=6, order="pairs", rotary=3))),
    ("rotary-long", "more rotated outputs than a head has", halves(part(head=2, order="pairs", rotary=4))),
    ("head-odd", "a head that is odd, all of it rotated", halves(part(head=3, order="pairs"))),
    ("full", "segments of a full target", samples.full(segments={"parts": [part(length=4)]})),
    ("embedding", "segments of an embedding", samples.embedding(segments={"parts": [part(length=3)]})),
)
INITIAL = (
    ("zero", "no initial rank", samples.linear(initial=0)),
    ("all", "all ranks are initial", samples.linear(initial=2)),
    ("more", "more ranks than there are", samples.linear(initial=3)),
    ("negative", "a negative number of ranks", samples.linear(initial=-1)),
    ("true", "true ranks", samples.linear(initial=True)),
    ("null", "an initial that is null", samples.linear(initial=None)),
    ("bias", "initial ranks of a bias", samples.bias(initial=1)),
    ("lokr", "initial ranks of a lokr target", of(samples.lokr(), initial=1)),
)
POSITIONS = (
    ("descending", "positions in descending order", samples.sparse((5, 0))),
    ("twice", "one position twice", samples.sparse((5, 5))),
    ("negative", "a negative position", samples.sparse((-1, 5))),
    ("beyond", "a position beyond the base tensor", samples.sparse((0, 12))),
    ("largest", "the largest position there is", samples.sparse((0, (1 << 63) - 1))),
    ("smallest", "the smallest position there is", samples.sparse((-(1 << 63), 0))),
)

TABLES = {
    "R-022": KIND, "R-023": LAYOUT, "R-024": SHAPE, "R-025": SCALE, "R-026": ROLES, "R-028": TYPES,
    "R-029": FACTORS, "R-030": MAGNITUDE, "R-031": VALUE, "R-032": GROUPS, "R-033": ROWS, "R-034": DIGESTS,
    "R-036": FINGERPRINT, "R-042": SEGMENTS, "R-043": INITIAL, "R-044": LENGTH, "R-045": POSITIONS,
}  # fmt: skip


BESIDES = {
    ("R-023", "missing"): "R-024",  # a list of as many lengths as an absent layout has axes
    ("R-032", "rank"): "R-029",  # no B has r / g columns
    ("R-032", "zero"): "R-029",
    ("R-033", "empty"): "R-031",  # the value of no rows breaks R-038
    ("R-044", "rows-behind"): "R-033",
}
"""What a file breaks in the same step as the rule that it is about, for whoever looks."""


def _spelled() -> Iterator[tuple[str, str, str, bytes]]:
    """Numbers that equal an integer and are none, and a record that is none."""
    yield (
        "R-044",
        "fraction",
        "a length with a fraction",
        spelled(samples.tokens(rows=[5], length=6), '"length":6', '"length":6.0'),
    )
    yield "R-024", "fraction", "a length with a fraction", spelled(samples.linear(), '"shape":[3,4]', '"shape":[3.0,4]')
    yield (
        "R-024",
        "exponent",
        "a length with an exponent",
        spelled(samples.linear(), '"shape":[3,4]', '"shape":[3,4e0]'),
    )
    yield "R-033", "fraction", "a row with a fraction", spelled(samples.tokens(), '"rows":[1,4]', '"rows":[1.0,4]')
    yield "R-033", "minus-zero", "a row of -0", spelled(samples.tokens(), '"rows":[1,4]', '"rows":[-0,4]')
    yield (
        "R-043",
        "fraction",
        "ranks with a fraction",
        spelled(samples.linear(initial=1), '"initial":1', '"initial":1.0'),
    )
    yield (
        "R-032",
        "fraction",
        "groups with a fraction",
        spelled(samples.conv(1, groups=2), '"groups":2', '"groups":2.0'),
    )
    draft = Draft({"loreg": 1, "targets": {"w": {"kind": "full", "shape": [1], "tensors": ["value"]}}})
    yield "R-026", "tensors-list", "tensors that are a list", draft.file()


def _data() -> Iterator[Vector]:
    """Digests of other bytes, alone and beside rules that come before them."""
    yield invalid("other-bytes", "R-035", "a digest of other bytes", stating(DIGEST).file(), about=("P-004", "P-024"))
    draft = samples.linear()
    item = draft.tensors["w/B"]
    draft.tensors["w/B"] = Tensor(item.dtype, item.shape, item.data[:-1] + b"\1")
    yield invalid("last-byte", "R-035", "the last byte of a factor is another", draft.file())
    draft = samples.sparse((5, 5))
    draft.target("w")["tensors"]["delta"] = DIGEST
    yield invalid(
        "sparse", ("R-035", "R-045"), "a digest of other bytes, and a position twice", draft.file(), ("sparse",)
    )


def vectors() -> Iterator[Vector]:
    """All of them."""
    assert BESIDES.keys() <= {(rule, name) for rule, cases in TABLES.items() for name, *_ in cases}
    for rule, cases in TABLES.items():
        for name, why, draft in cases:
            if draft is not None:
                besides = BESIDES.get((rule, name))
                yield invalid(name, (rule, besides) if besides else rule, why, draft.file(), needed(draft))
    for rule, name, why, data in _spelled():
        yield invalid(name, rule, why, data)
    yield from _data()
