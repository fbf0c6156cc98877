"""Sound files: every optional field, names and numbers at their limits, and what a reader does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import samples
from container import tensor
from draft import Draft, adapter
from samples import DIGEST, IN_OUT, OUT_IN
from vector import Vector, sound

OTHER = "sha256:" + "0123456789abcdef" * 4
AXIS_LENGTH = 1 << 40
SAFE = (1 << 53) - 1


_ABOUT = {
    "extension": ("P-029",), "extension-digits": ("P-029",), "extension-unnamed": ("P-029",),
    "fingerprint": ("P-023",), "base": ("P-023",), "origin": ("P-023",), "unknown-fields": ("P-023",),
    "write-unknown": ("P-025",),
}  # fmt: skip


def _with(draft: Draft | None = None, **fields: Any) -> Draft:
    result = samples.linear() if draft is None else draft
    result.document.update(fields)
    return result


def vectors() -> Iterator[Vector]:
    """All of them."""
    for table in (_descriptions, _features, _names, _targets, _segments):
        for name, why, draft in table():
            yield sound(name, why, draft, rules=_ABOUT.get(name, ()))


def _descriptions() -> Iterator[tuple[str, str, Draft]]:
    yield "base", "the base by name, revision and license", _with(
        base={"name": "example/tiny", "revision": "3f2a", "license": "Apache-2.0 OR MIT"}
    )  # fmt: skip
    yield "base-view", "a quantized base", _with(base={"view": {"scheme": "nf4", "block": 64, "double": True}})
    yield "base-view-any", "a scheme that nobody has heard of", _with(base={"view": {"scheme": ""}})
    yield "info", "a description for people", _with(
        info={"title": "A tone", "description": "two\nlines", "license": "MIT", "authors": ["A"], "tags": ["x", "y"]}
    )  # fmt: skip
    letters = "\u00fc\u4e16\u754c \U0001f600 e\u0301 \u202e\u0000"
    yield (
        "info-letters",
        "letters of all kinds, and a control character",
        _with(info={"title": letters, letters: letters}),
    )
    yield "origin", "where it came from: alpha and flags have no effect", _with(
        origin={"format": "peft", "version": "0.21", "config": {"lora_alpha": 64, "r": 2, "use_rslora": True}}
    )  # fmt: skip
    yield "tokenizer", "what it expects of the tokenizer", _with(
        tokenizer={"digest": DIGEST, "chat_template": OTHER, "added": [{"id": 0, "text": ""}, {"id": 9, "text": "<x>"}]}
    )  # fmt: skip
    yield "lineage", "how it was made of others", _with(
        lineage={
            "operation": "combine", "parameters": {"weights": [1, 0.5]},
            "parents": [{"content": DIGEST, "name": "tone"}, {"content": OTHER}],
        }
    )  # fmt: skip
    yield "lineage-short", "an operation without parents", _with(lineage={"operation": "truncate"})
    yield "training", "what made it", _with(
        training={
            "tool": "t", "version": "2.1",
            "datasets": [{"name": "d", "revision": "main", "license": "CC-BY-4.0"}, {"name": "e"}],
        }
    )  # fmt: skip
    yield "unknown-fields", "fields that this text does not define", _with(
        samples.linear(note="x", alpha=16, rank=2),
        hobby=["a", {"b": None}], base={"parameters": 7}, info={"mood": 1}, lineage={"operation": "x", "when": 0},
    )  # fmt: skip
    draft = samples.linear()
    draft.document |= {"constructor": 1, "toString": {"__proto__": 2}, "__proto__": {"loreg": 3}}
    yield "fields-of-objects", "names that objects have in some languages", draft
    numbers = [0, -1, SAFE, -SAFE, 0.1, 1e-7, 1e21, 5e-324, 1.7976931348623157e308]
    yield "unknown-numbers", "numbers at the limits of strict JSON", _with(numbers=numbers)


def _features() -> Iterator[tuple[str, str, Draft]]:
    gated = _with(samples.requiring(samples.linear(), "gate"), gate={"tokens": [27, 91, 27]})
    yield "gate", "a gate is part of the content", gated
    yield "gate-one-token", "a gate of one token, the first", _with(
        samples.requiring(samples.linear(), "gate"), gate={"tokens": [0]}
    )  # fmt: skip
    yield (
        "feature-unneeded",
        "a feature that nothing needs is part of the content",
        samples.requiring(samples.linear(), "gate"),
    )
    all_features = ("gate", "loha", "lokr", "sparse")
    yield "features-all", "all registered features at once", samples.requiring(samples.linear(), *all_features)
    yield "write-unknown", "what only an editor has to know", _with(requires={"write": ["com.example.signed", "x-1.2"]})
    yield "write-long", "a name of a hundred characters", _with(requires={"write": ["a" * 100]})
    extension = {"com.example.evaluation": {"accuracy": 0.75, "per": {"task": [1, None]}}, "io.a-1": {}}
    yield "extension", "an extension that a reader ignores", _with(extensions=extension)
    yield "extension-digits", "an extension whose name has digits and hyphens", _with(extensions={"io.a-1.x9": {}})
    yield "extension-hyphens", "labels of hyphens and digits alone", _with(extensions={"-.9": {}})
    named = _with(samples.requiring(samples.linear(), "gate"), extensions={"com.example.x": {"a": 1}})
    yield "extension-unnamed", "an extension that is not required is no part of the content", named


def _names() -> Iterator[tuple[str, str, Draft]]:
    def named(*names: str) -> Draft:
        return adapter({name: ({"kind": "full", "shape": [1]}, {"value": tensor("U8", (1,))}) for name in names})

    yield "name-longest", "a key of 256 characters", named("n" * 250)
    yield "name-letters", "all characters that names have", named("".join(map(chr, range(0x21, 0x7F))))
    yield "name-solidi", "the role is what follows the last solidus", named("a", "a/value", "a/value/value", "/", "//")
    yield "name-objects", "names that objects have in some languages", named(
        "__proto__", "constructor", "toString", "__metadata__", "hasOwnProperty"
    )  # fmt: skip
    yield "name-numbers", "names that look like numbers", named("10", "9", "-1", "1e3", "007")
    linear = {"kind": "linear", "layout": OUT_IN, "shape": [3, 4], "scale": 1}
    full = ({"kind": "full", "shape": [1]}, {"value": tensor("U8", (1,))})
    yield "name-is-key", "a name that is another target's key", adapter(
        {"w": (linear, samples.factors((2, 4), (3, 2))), "w/A": full}
    )  # fmt: skip
    yield "name-experts", "experts in tensors of their own are linear targets", adapter(
        {f"experts.{n}.w": (linear, samples.factors((n + 1, 4), (3, n + 1))) for n in range(3)}
    )  # fmt: skip


def _targets() -> Iterator[tuple[str, str, Draft]]:
    for name, scale in {
        "integer": 3, "negative": -2, "zero": 0, "fraction": 0.1, "root": 2**0.5, "large": 1e300, "tiny": 1e-300,
        "smallest": 5e-324, "safe": SAFE, "exponent": 1e21,
    }.items():  # fmt: skip
        yield f"scale-{name}", f"a scale of {scale}", samples.linear(scale=scale)
    several = adapter(
        {
            "c": ({"kind": "full", "shape": [2]}, {"value": tensor("F32", (2,))}),
            "a": ({"kind": "full", "shape": [2], "fingerprint": DIGEST}, {"value": tensor("F32", (2,))}),
            "b": ({"kind": "full", "shape": [2], "fingerprint": OTHER}, {"value": tensor("F32", (2,))}),
        }
    )
    yield "fingerprints", "two fingerprints of three targets, and their root digest", several
    yield "fingerprint", "a fingerprint is no part of the content", samples.linear(fingerprint=OTHER)
    yield "initial", "ranks that are initial factors", samples.linear(initial=1)
    for name, draft in {
        "embedding": samples.embedding(initial=1), "conv": samples.conv(2, initial=1),
        "experts": samples.experts(initial=1),
    }.items():  # fmt: skip
        yield f"initial-{name}", f"the same of the kind {name}", draft
    yield "groups-all", "as many groups as ranks", samples.conv(3, groups=2)
    yield "groups-one", "groups of one output each", samples.conv(
        1, {"A": tensor("F32", (4, 8, 2)), "B": tensor("F32", (4, 1, 1))}, groups=4
    )  # fmt: skip
    rowless = samples.tokens()
    del rowless.target("w")["shape"]
    yield "tokens-no-shape", "a tokens target that does not know its base's shape", rowless
    yield (
        "tokens-largest",
        "the last row of the longest base",
        samples.tokens(shape=[AXIS_LENGTH, 3], rows=[0, AXIS_LENGTH - 1]),
    )
    long = AXIS_LENGTH - 2
    yield "tokens-length-largest", "the longest that a vocabulary grows to", samples.tokens(
        shape=[long, 3], rows=[long, long + 1], length=AXIS_LENGTH
    )  # fmt: skip
    yield "tokens-length-all", "added rows only", samples.tokens(rows=[5], length=6)
    yield "tokens-integers", "rows of integers", samples.tokens("I8")
    yield "rank-one", "a rank of one, and a scale that is none of the usual", samples.linear(
        samples.factors((1, 4), (3, 1)), scale=11.313708498984761
    )  # fmt: skip
    yield "rank-above", "a rank above both axes", samples.linear(samples.factors((5, 4), (3, 5)))
    yield "not-finite", "NaN and infinities break no rule", samples.full(
        tensor("F16", (3,), [float("nan"), float("inf"), -float("inf")])
    )  # fmt: skip
    yield "index-last", "the first and the last position", samples.sparse((0, 11))


def _segments() -> Iterator[tuple[str, str, Draft]]:
    def fused(parts: list[dict[str, Any]], **fields: Any) -> Draft:
        rows = sum(part["length"] for part in parts)
        b = {"B": tensor("F32", (rows, 2))}
        return samples.linear(b, shape=[rows, 4], segments={"parts": parts, **fields})

    halves, pairs = {"head": 4, "order": "halves"}, {"head": 2, "order": "pairs"}
    q, k, v = {"name": "q", "length": 8}, {"name": "k", "length": 4}, {"name": "v", "length": 4}
    yield "segments-qkv", "three maps one after the other", fused([q, k, v])
    yield "segments-interleave", "the same by groups", fused([q, k, v], interleave=4)
    yield "segments-rope", "rotations of halves and of pairs", fused([q | {"rope": halves}, k | {"rope": pairs}, v])
    yield "segments-rotary", "a part of each head is rotated", fused([q | {"rope": halves | {"rotary": 2}}, k])
    odd = {"name": "q", "length": 6, "rope": {"head": 3, "order": "pairs", "rotary": 2}}
    yield "segments-odd-head", "an odd head, of which an even part is rotated", fused([odd])
    yield "segments-one", "one segment says how it is rotated", fused([q | {"rope": halves}])
    gate, up = {"name": "gate", "length": 3}, {"name": "up", "length": 3}
    yield "segments-rows", "two maps that alternate row by row", fused([gate, up], interleave=3)
    parts = {"parts": [{"name": "gate", "length": 1}, {"name": "up", "length": 2}]}
    yield "segments-experts", "of experts", samples.experts(segments=parts)
    yield "segments-experts-in-out", "of experts stored transposed", samples.experts(
        layout=["expert", *IN_OUT], shape=[2, 4, 3], segments=parts
    )  # fmt: skip
    yield "segments-bias", "of a bias", samples.bias(segments=parts)
    yield (
        "segments-in-out",
        "of a matrix stored transposed",
        samples.linear(layout=IN_OUT, shape=[4, 3], segments=parts),
    )
    loha, lokr = samples.loha(), samples.lokr()
    loha.target("w")["segments"] = parts
    lokr.target("w")["segments"] = {"parts": [q | {"length": 2}, k]}
    yield "segments-loha", "of a loha target", loha
    yield "segments-lokr", "of a lokr target", lokr
