"""Files whose document breaks a rule above its targets: R-009, R-011 to R-020, R-037, and R-039 to R-041."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import canonical
import container
import samples
from container import tensor
from draft import Draft, adapter, one
from vector import Vector, invalid

DEPTH = 32
BEYOND = 1 << 53
DIGEST = samples.DIGEST


def top(**fields: Any) -> bytes:
    """The sound linear adapter with these fields of the document."""
    draft = samples.linear()
    draft.document.update(fields)
    return draft.file()


def text(spelled: str) -> bytes:
    """The tensors of the sound linear adapter, beside this text in place of a document."""
    return samples.linear().file(spelled)


def spelled(old: str, new: str) -> bytes:
    """The sound linear adapter, with one part of its document in another spelling."""
    document = canonical.encode(samples.linear().document).decode()
    assert old in document
    return text(document.replace(old, new, 1))


def respelled(fields: dict[str, Any], old: str, new: str) -> bytes:
    """The sound linear adapter with these fields of the document, one part of them in another spelling."""
    draft = samples.linear()
    draft.document.update(fields)
    document = canonical.encode(draft.document).decode()
    assert old in document
    return text(document.replace(old, new, 1))


def metadata(entries: dict[str, str] | None) -> bytes:
    """The tensors of the sound linear adapter, with this string map."""
    return container.sealed(samples.linear().tensors, entries)


def renamed(draft: Draft, name: str) -> bytes:
    """The one target under another name."""
    tensors = {key.removeprefix("w/"): item for key, item in draft.tensors.items()}
    record = {key: value for key, value in draft.target("w").items() if key != "tensors"}
    return adapter({name: (record, tensors)}).file()


def no_version() -> bytes:
    """A document without a version."""
    draft = samples.linear()
    del draft.document["loreg"]
    return draft.file()


def gated(gate: Any) -> bytes:
    """A document with the feature and this gate."""
    return top(requires={"read": ["gate"]}, gate=gate)


def unfeatured(draft: Draft) -> bytes:
    """A draft without what it requires."""
    del draft.document["requires"]
    return draft.file()


def empty_factors() -> bytes:
    """Two factors of rank 0."""
    return samples.linear({"A": tensor("F32", (0, 4)), "B": tensor("F32", (3, 0))}).file()


SOUND = canonical.encode(samples.linear().document).decode()


def beside(member: str) -> str:
    """The sound document with a member that nobody knows, or a second one of a name."""
    return SOUND.replace('"loreg":1', f'"loreg":1,{member}')


def lists(depth: int, inside: str = "") -> str:
    """So many nested lists, under the name x."""
    return '"x":' + "[" * depth + inside + "]" * depth


LONG = "n" * 251

KEYS = (
    ("R-009", "long", "a key of 257 characters, of a name of fewer", renamed(samples.full(), LONG)),
    (("R-009", "R-021"), "space", "a space in a name is one in its keys", renamed(samples.full(), "norm weight")),
    (("R-009", "R-021"), "umlaut", "a letter that looks like another", renamed(samples.full(), "w\u0435ight")),
    (("R-009", "R-021"), "escape", "a control character in a name", renamed(samples.full(), "w\x1b[2J")),
    (("R-009", "R-021"), "line-feed", "a line feed behind a name", renamed(samples.full(), "weight\n")),
    (("R-009", "R-021"), "long", "a name of 257 characters", renamed(samples.full(), "n" * 257)),
    ("R-021", "empty", "a target without a name", renamed(samples.full(), "")),
    ("R-011", "other-key", "metadata of another program", metadata({"format": "pt"})),
    ("R-011", "no-map", "no metadata at all", metadata(None)),
    ("R-011", "empty-map", "metadata without an entry", metadata({})),
    ("R-011", "second-key", "a second entry beside the document", metadata({"loreg": SOUND, "format": "pt"})),
    ("R-038", "rank-0", "factors of rank 0", empty_factors()),
    ("R-038", "empty-value", "a value of no elements beside a target that is sound", None),
)  # fmt: skip

STRICT = (
    ("half", "half an object", "{"),
    ("empty", "an empty string", ""),
    ("array", "an array", "[]"),
    ("string", "a string", '"loreg"'),
    ("byte-order-mark", "a byte order mark in front", "\ufeff" + SOUND),
    ("second-object", "something after the object", SOUND + "{}"),
    ("nan", "NaN as a scale", SOUND.replace('"scale":2', '"scale":NaN')),
    ("infinity", "a scale beyond binary64", SOUND.replace('"scale":2', '"scale":1e309')),
    ("target-twice", "one target twice", '{"loreg":1,"targets":{"w":{},"w":{}}}'),
    ("version-twice", "the version twice, in two spellings", beside('"lore\\u0067":1')),
    ("unknown-twice", "an unknown member twice", beside('"x":{"y":1,"y":1}')),
    ("integer-beyond", "an integer that programs read differently", beside(f'"x":{BEYOND}')),
    ("integer-twenty-one-digits", "the largest number that is written so", beside('"x":999999999999999868928')),
    ("float-beyond", "a float whose canonical form is such an integer", SOUND.replace('"scale":2', '"scale":1e20')),
    ("fraction-beyond", "the same with a fraction", SOUND.replace('"scale":2', '"scale":-9007199254740992.0')),
    ("too-deep", "a level of nesting too many", beside(lists(DEPTH + 1))),
    ("number-too-deep", "a number one level too deep", beside(lists(DEPTH, "0"))),
    ("surrogate", "half of a surrogate pair", beside('"x":"\\udc00"')),
    ("surrogate-upper-case", "the same in upper case", beside(r'"x":"\uDC00"')),
    ("surrogates-reversed", "the halves of a pair in the wrong order", beside(r'"x":"\ude00\ud83d"')),
    ("surrogate-name", "half of a surrogate pair in a name", beside(r'"\ud83d":1')),
    ("single-quotes", "an object as Python prints it", SOUND.replace('"', "'")),
    ("trailing-comma", "a comma after the last member", SOUND[:-1] + ",}"),
    ("no-break-space", "space in front that JSON does not have", "\u00a0" + SOUND),
    ("form-feed", "a form feed behind it", SOUND + "\f"),
    ("zero-byte", "a zero byte behind it", SOUND + "\0"),
)  # fmt: skip

VERSION = (
    ("two", "another major version", top(loreg=2)),
    ("zero", "version 0", top(loreg=0)),
    ("string", "a version that is a string", top(loreg="1")),
    ("true", "a version that is true", top(loreg=True)),
    ("null", "a version that is null", top(loreg=None)),
    ("fraction", "a version with a fraction is no integer", spelled('"loreg":1', '"loreg":1.0')),
    ("exponent", "a version with an exponent is no integer", spelled('"loreg":1', '"loreg":1e0')),
    ("missing", "no version", no_version()),
    ("alone", "of another version no other rule is reported", top(loreg=2, targets=[], base=None)),
)
REQUIREMENTS = (
    ("list", "requirements that are a list", top(requires=["x"])),
    ("null", "requirements that are null", top(requires=None)),
    ("merge", "requirements for something else", top(requires={"merge": []})),
    ("string", "a name in place of a list", top(requires={"write": "a"})),
    ("read-string", "a known feature in place of a list", top(requires={"read": "gate"})),
    ("number", "a name that is a number", top(requires={"write": [1]})),
    ("upper-case", "a name in upper case", top(requires={"write": ["X"]})),
    ("empty-name", "a name of no characters", top(requires={"write": [""]})),
    ("line-feed", "a name with a line feed behind it", top(requires={"write": ["a\n"]})),
    ("long-name", "a name of 101 characters", top(requires={"write": ["a" * 101]})),
    ("not-sorted", "names that are not sorted", top(requires={"write": ["b", "a"]})),
    ("twice", "a name twice", top(requires={"write": ["a", "a"]})),
    ("read-not-sorted", "known features that are not sorted", top(requires={"read": ["loha", "gate"]})),
)
FEATURES = (
    ("unknown", "a feature that nobody knows", top(requires={"read": ["com.example.gate"]})),
    ("second", "an unknown feature after a known one", top(requires={"read": ["gate", "unheard-of"]})),
    ("not-sorted", "unknown features that are not sorted besides", top(requires={"read": ["b", "a"]})),
    (
        "alone",
        "with an unknown feature no other rule is reported",
        top(requires={"read": ["a"], "write": [1]}, base=[]),
    ),
    (
        "extension",
        "an extension that changes W' and that nobody knows",
        top(requires={"read": ["com.example.rotate"]}, extensions={"com.example.rotate": {"angle": 90}}),
    ),
)
EXTENSIONS = (
    ("no-domain", "an extension without a domain", top(extensions={"gate": {}})),
    ("upper-case", "an extension in upper case", top(extensions={"com.Example.x": {}})),
    ("underscore", "a letter that names do not have", top(extensions={"com.example.a_b": {}})),
    ("empty-label", "two full stops in a row", top(extensions={"com..example": {}})),
    ("empty-first", "a full stop in front", top(extensions={".example": {}})),
    ("empty-last", "a full stop behind", top(extensions={"com.example.": {}})),
    ("full-stop", "nothing but a full stop", top(extensions={".": {}})),
    ("one-label", "one label of all letters there are", top(extensions={"com-example-9": {}})),
    ("space", "a line feed behind the name", top(extensions={"com.example\n": {}})),
    ("umlaut", "a letter beyond ASCII", top(extensions={"com.ex\u00e4mple": {}})),
    ("null-member", "an extension that is null", top(extensions={"com.example.x": None})),
    ("number", "an extension that is a number", top(extensions={"com.example.x": 1})),
    ("list", "extensions that are a list", top(extensions=[])),
    ("null", "extensions that are null", top(extensions=None)),
)
NEEDED = (
    ("gate", "a gate without its feature", top(gate={"tokens": [1]})),
    ("loha", "a kind without its feature", unfeatured(samples.loha())),
    ("lokr", "a kind without its feature", unfeatured(samples.lokr())),
    ("sparse", "a kind without its feature", unfeatured(samples.sparse())),
    ("other", "another feature than the one that is needed", top(gate={"tokens": [1]}, requires={"read": ["loha"]})),
    ("write-only", "a feature that only an editor is told of", top(gate={"tokens": [1]}, requires={"write": ["gate"]})),
)
GATE = (
    ("list", "a gate that is a list", gated([1])),
    ("null", "a gate that is null", gated(None)),
    ("empty", "a gate without a member", gated({})),
    ("no-tokens", "a gate of no tokens", gated({"tokens": []})),
    ("negative", "a negative token", gated({"tokens": [1, -1]})),
    ("true", "a token that is true", gated({"tokens": [True]})),
    ("string", "a token that is text", gated({"tokens": ["<tool>"]})),
    ("fraction", "a token with a fraction of zero", None),
    ("minus-zero", "a token of -0", None),
    ("second-member", "a member besides the tokens", gated({"tokens": [1], "side": "left"})),
)
TOKENIZER = (
    ("string", "a tokenizer that is a string", top(tokenizer="gpt2")),
    ("digest", "a digest of forty digits", top(tokenizer={"digest": "sha256:" + "f" * 40})),
    ("template", "a template in place of its digest", top(tokenizer={"chat_template": "{{ messages }}"})),
    ("added-object", "added tokens that are an object", top(tokenizer={"added": {}})),
    ("no-text", "an added token without text", top(tokenizer={"added": [{"id": 5}]})),
    ("no-id", "an added token without id", top(tokenizer={"added": [{"text": "x"}]})),
    ("negative-id", "an added token before the first", top(tokenizer={"added": [{"id": -1, "text": "x"}]})),
    ("fraction-id", "an id with a fraction", top(tokenizer={"added": [{"id": 1.5, "text": "x"}]})),
)
DESCRIPTIONS = (
    ("base-string", "a base that is a string", top(base="example/base")),
    ("base-null", "a base that is null", top(base=None)),
    ("revision-number", "a revision that is a number", top(base={"revision": 1})),
    ("name-null", "a name that is null", top(base={"name": None})),
    ("base-license-list", "a license of the base that is a list", top(base={"license": ["MIT"]})),
    ("license-list", "a license that is a list", top(info={"license": ["MIT"]})),
    ("title-number", "a title that is a number", top(info={"title": 7})),
    ("info-list", "an info that is a list", top(info=[])),
    ("origin-null", "an origin that is null", top(origin=None)),
)
VIEW = (
    ("string", "a view that is a string", top(base={"view": "nf4"})),
    ("empty", "a view without a scheme", top(base={"view": {}})),
    ("scheme-number", "a scheme that is a number", top(base={"view": {"scheme": 4}})),
    ("null", "a view that is null", top(base={"view": None})),
)
LINEAGE = (
    ("empty", "a lineage without an operation", top(lineage={})),
    ("list", "a lineage that is a list", top(lineage=[DIGEST])),
    ("operation-number", "an operation that is a number", top(lineage={"operation": 1})),
    ("parameters-list", "parameters that are a list", top(lineage={"operation": "add", "parameters": [1]})),
    ("parents-object", "parents that are an object", top(lineage={"operation": "add", "parents": {}})),
    ("parent-string", "a parent that is a string", top(lineage={"operation": "add", "parents": [DIGEST]})),
    ("no-content", "a parent without its digest", top(lineage={"operation": "add", "parents": [{"name": "a"}]})),
    ("parent-name", "a parent whose name is a number",
     top(lineage={"operation": "add", "parents": [{"content": DIGEST, "name": 1}]})),
)  # fmt: skip
TRAINING = (
    ("string", "training that is a string", top(training="sft")),
    ("tool-list", "a tool that is a list", top(training={"tool": []})),
    ("version-number", "a version that is a number", top(training={"version": 2.1})),
    ("datasets-object", "data sets that are an object", top(training={"datasets": {}})),
    ("dataset-string", "a data set that is a string", top(training={"datasets": ["c4"]})),
    ("dataset-unnamed", "a data set without a name", top(training={"datasets": [{"license": "MIT"}]})),
    ("dataset-revision", "a revision that is a number", top(training={"datasets": [{"name": "c4", "revision": 2}]})),
    ("dataset-license", "a license that is null", top(training={"datasets": [{"name": "c4", "license": None}]})),
)


def no_targets() -> Iterator[tuple[str, str, bytes]]:
    """Documents without a target, beside no tensor."""
    for name, why, fields in (
        ("empty", "no target", {"targets": {}}),
        ("list", "targets that are a list", {"targets": [1]}),
        ("null", "targets that are null", {"targets": None}),
        ("missing", "targets missing", {}),
    ):
        yield name, why, Draft({"loreg": 1, **fields}).file()


UNSTATED = ("R-027", "R-034")
"""What a tensor breaks that no target states: its key is of no role, and its digest stands nowhere."""


def strays() -> Iterator[tuple[str | tuple[str, ...], str, str, bytes]]:
    """Keys and targets that do not belong to each other."""
    draft = samples.linear()
    draft.tensors["stray"] = tensor("U8", (1,))
    yield UNSTATED, "stray", "a tensor of no target", draft.file()
    draft = samples.linear()
    draft.tensors["w/C"] = tensor("F32", (1,))
    yield UNSTATED, "stray-role", "a tensor of a role that its target does not state", draft.file()
    draft = samples.linear()
    del draft.tensors["w/A"]
    yield "R-027", "absent", "a tensor that is stated and not there", draft.file()
    draft = samples.linear({"value": tensor("F32", (3, 4))})
    del draft.tensors["w/value"]
    yield "R-027", "absent-optional", "a value that is stated and not there", draft.file()
    del draft.document["targets"]["w"]["tensors"]["value"]
    draft.tensors["w/value"] = tensor("F32", (3, 4))
    yield UNSTATED, "unstated", "a tensor that is there and not stated", draft.file()
    draft = samples.linear()
    draft.tensors["w.A"] = draft.tensors.pop("w/A")
    yield UNSTATED, "separator", "a key with a full stop in place of the solidus", draft.file()


def empty_value() -> bytes:
    """A tensors of no elements: the rows of a target are one, its width is none."""
    return one({"value": tensor("F32", (1, 0))}, kind="tokens", layout=samples.IN_OUT, rows=[0]).file()


def vectors() -> Iterator[Vector]:
    """All of them."""
    for rule, name, why, data in KEYS:
        yield invalid(name, rule, why, empty_value() if data is None else data)
    for rules, name, why, data in strays():
        yield invalid(name, rules, why, data)
    for name, why, document in STRICT:
        yield invalid(name, "R-012", why, text(document))
    tables = {
        "R-013": VERSION, "R-014": REQUIREMENTS, "R-015": FEATURES, "R-016": EXTENSIONS, "R-017": NEEDED,
        "R-019": TOKENIZER, "R-020": tuple(no_targets()), "R-037": DESCRIPTIONS,
        "R-039": LINEAGE, "R-040": TRAINING, "R-041": VIEW,
    }  # fmt: skip
    for rule, cases in tables.items():
        for name, why, data in cases:
            needs = {"read-not-sorted": ("gate", "loha"), "other": ("loha",)}.get(name, ())
            yield invalid(name, rule, why, data, needs, ("P-040",) if name == "alone" else ())
    numbers = {"fraction": "7.0", "minus-zero": "-0"}
    for name, why, data in GATE:
        found = respelled({"requires": {"read": ["gate"]}, "gate": {"tokens": [7]}}, "[7]", f"[{numbers.get(name)}]")
        yield invalid(name, "R-018", why, found if data is None else data, ("gate",))
    for name, number in numbers.items():
        found = respelled({"tokenizer": {"added": [{"id": 7, "text": "x"}]}}, '"id":7', f'"id":{number}')
        yield invalid(f"id-{name}", "R-019", f"an id of {number}", found)
