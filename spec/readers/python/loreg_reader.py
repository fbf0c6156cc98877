"""A reader and validator of loreg adapters in one file, from adapter-format.md 1.0 and nothing else; copy it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from hashlib import sha256
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

# A form, which `fits` compares a value with: types; a pattern of text; a range of integers; [form of the items] or
# [form, range of their number]; {"member": form, "optional?": form, "*": form of all other members}.
TEXT, NUMBER, NOTHING, ANYTHING = (str,), (int, float), (), (str, int, float, bool, list, dict, type(None))
BEYOND = 10**309  # no number of JSON that is finite as a binary64 reaches it
COUNT, POSITIVE, LENGTH = range(BEYOND), range(1, BEYOND), range(1, 2**40 + 1)
NAME, DIGEST = re.compile("[!-~]{1,256}"), re.compile("sha256:[0-9a-f]{64}")
FEATURE, REVERSE_DNS = re.compile("[a-z0-9.-]{1,100}"), re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES = FLOATS | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
RECORD = {  # the forms of a tensor's record, by rule
    "R-004": {"dtype": ANYTHING, "shape": ANYTHING, "data_offsets": ANYTHING, "*": NOTHING},
    "R-005": {"dtype?": re.compile("|".join(SIZES))},
    "R-006": {"shape?": [range(2**40 + 1), range(9)]},
}
SOURCE = {"revision?": TEXT, "license?": TEXT}
DOCUMENT = {  # the forms of the document, by rule
    "R-014": {"requires?": {"read?": [FEATURE], "write?": [FEATURE], "*": NOTHING}},
    "R-016": {"extensions?": {"*": {}}},
    "R-018": {"gate?": {"tokens": [COUNT, POSITIVE], "*": NOTHING}},
    "R-019": {"tokenizer?": {"digest?": DIGEST, "chat_template?": DIGEST, "added?": [{"id": COUNT, "text": TEXT}]}},
    "R-020": {"targets": {}},
    "R-037": {"base?": {"name?": TEXT} | SOURCE, "info?": {"title?": TEXT, "license?": TEXT}, "origin?": {}},
    "R-039": {"lineage?": {"operation": TEXT, "parameters?": {}, "parents?": [{"content": DIGEST, "name?": TEXT}]}},
    "R-040": {"training?": {"tool?": TEXT, "version?": TEXT, "datasets?": [{"name": TEXT} | SOURCE]}},
}
ROPE = {"head": POSITIVE, "order": re.compile("halves|pairs"), "rotary?": range(2, BEYOND), "*": NOTHING}
PART = {"name": re.compile("(?s).+"), "length": POSITIVE, "rope?": ROPE, "*": NOTHING}
SEGMENTS = {"parts": [PART, POSITIVE], "interleave?": POSITIVE, "*": NOTHING}
KERNEL, CONV = ["out in k", "out in k k", "out in k k k"], {"A": "r inputs k", "B": "out ranks one"}
FACTORS, EXPERTS = {"A": "r in", "B": "out r"}, {"A": "expert r in", "B": "expert out r"}
VALUE, NORM = {"value?": "base"}, {"value?": "base", "magnitude?": "out"}
KINDS: dict[str, Any] = {  # layouts; roles with their axes, of which base is all those of the base tensor; fields
    "linear": (["out in", "in out"], FACTORS | NORM, ["scale", "segments", "initial"]),
    "embedding": (["in out"], FACTORS | NORM, ["scale", "initial"]),
    "conv": (KERNEL, CONV | NORM, ["scale", "initial", "groups"]),
    "experts": (["expert out in", "expert in out"], EXPERTS | VALUE, ["scale", "segments", "initial"]),
    "bias": (["out"], {"delta": "out"}, ["scale", "segments"]),
    "full": ([""], {"value": "base"}, []),
    "tokens": (["in out"], {"value": "rows out"}, ["rows", "length"]),
}
KIND, REGISTERED = re.compile("|".join(KINDS)), re.compile("loha|lokr|sparse")  # kinds that need a feature
FIELD_RULES = {"groups": "R-032", "rows": "R-033", "segments": "R-042", "initial": "R-043", "length": "R-044"}
ROLE_RULES = {"A": "R-029", "B": "R-029", "magnitude": "R-030", "delta": "R-031", "value": "R-031"}
CONTENT, SILENT = ["kind", "layout", "shape", "scale", "groups", "rows", "length"], {"layout": [], "groups": 1}
FEATURES, CODES = ["gate"], {"R-013": "unsupported", "R-015": "unsupported", "R-035": "integrity"}
HELLO = {"name": "loreg-reader-python", "version": "1.0.0", "format": "1.0", "features": FEATURES}
BESIDE = {"write": "writer", "edit": "editor", "merge": "merger", "probe": "prover"}  # modules, and their classes


class RefusalError(Exception):
    """A code of section 15, and the rules that are broken or another reason."""


def strict(text: str) -> Any:
    """The object in strict JSON (section 6); None where there is none."""
    try:
        bare = re.sub(r'"(?:[^"\\]++|\\.)*+"?', "0", text)
        brackets = re.findall(r"[][{}]", re.sub(r"[^][{},:\s]+", "[]", bare))  # every value now has a pair of them
        levels = accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
        if sum(map(bare.count, ",[{")) > 2_097_152 or max(levels, default=0) > 33:
            return None
        value = json.loads(text, parse_int=number, parse_float=number, parse_constant=number, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair, and what was no UTF-8
        return value if isinstance(value, dict) else None
    except ValueError:
        return None


def number(text: str) -> float:
    """A finite number; canonical form writes whole ones below 1e21 as integers, which end at 2**53 - 1."""
    value = float(text)
    if not math.isfinite(value) or 2**53 - 1 < abs(value) < 1e21:
        raise ValueError(text)
    return int(text) if re.fullmatch("0|-?[1-9][0-9]*", text) else value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, none of them twice."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError(pairs)
    return dict(pairs)


def canonical(value: Any) -> str:
    """Canonical JSON (RFC 8785) of strict JSON: members sorted by UTF-16 code units, numbers as ECMAScript has them."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False)
    value = float(value) or 0.0  # -0 is written 0
    plain = not value or 1e-6 <= abs(value) < 1e21
    return f"{Decimal(repr(value)).normalize():f}" if plain else repr(value).replace("e-0", "e-")


def digest(data: bytes) -> str:
    """The sha256 of bytes as section 2 writes it."""
    return "sha256:" + sha256(data).hexdigest()


def fits(value: Any, form: Any) -> bool:
    """Whether a value has a form."""
    if isinstance(form, tuple):
        return type(value) in form
    if isinstance(form, range):
        return type(value) is int and value in form  # which JSON's true is not
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(form, list):
        item_form, count = (*form, COUNT)[:2]
        return isinstance(value, list) and len(value) in count and all(fits(item, item_form) for item in value)
    forms = {name.rstrip("?"): inner for name, inner in form.items()}
    others = forms.pop("*", ANYTHING)
    complete = isinstance(value, dict) and all(name in value or f"{name}?" in form for name in forms)
    return complete and all(fits(item, forms.get(name, others)) for name, item in value.items())


def members(value: Any) -> dict[str, Any]:
    """The members of an object, and none of anything else, of which another rule complains."""
    return value if isinstance(value, dict) else {}


class Adapter:
    """A file that breaks no rule; a foreign one, which has no more, is judged until the end of its "container"."""

    def __init__(self, path: str | Path, until: str = "data") -> None:
        self.path = Path(path)
        for step in self.steps(until):
            broken = sorted({rule for rule, holds in step if not holds})
            if broken:
                raise RefusalError(CODES.get(broken[0], "invalid-input"), broken)

    def steps(self, until: str) -> Iterator[Iterable[tuple[str, object]]]:
        """The steps of conformance.md: rules and whether they hold; a step relies on those before it."""
        with self.path.open("rb") as file:
            self.start = 8 + int.from_bytes(file.read(8), "little")
            text, size = file.read(min(self.start - 8, 33_554_432)), file.seek(0, 2)
        yield [("R-001", self.start <= min(size, 8 + 33_554_432))]
        self.tensors = strict(text.decode(errors="surrogateescape") if text.startswith(b"{") else "")
        yield [("R-002", self.tensors is not None)]
        metadata, records = self.tensors.pop("__metadata__", {}), self.tensors.values()
        forms = [(rule, fits(members(record), form)) for record in records for rule, form in RECORD.items()]
        yield [("R-004", fits(metadata, {"*": TEXT})), ("R-010", len(self.tensors) <= 65_536), *forms]
        yield (("R-007", fits(record["data_offsets"], [COUNT, range(2, 3)])) for record in records)
        spans = sorted((*r["data_offsets"], math.prod(r["shape"]) * SIZES[r["dtype"]]) for r in records)
        yield (("R-007", end - begin == length) for begin, end, length in spans)
        ends = [0, *(end for _, end, _ in spans)]
        yield [("R-008", [begin for begin, _, _ in spans] == ends[:-1])]
        yield [("R-003", self.start + ends[-1] == size)]
        self.spans = {key: record.pop("data_offsets") for key, record in self.tensors.items()}
        if until == "data":
            yield [("R-011", set(metadata) == {"loreg"})]
            self.document = strict(metadata["loreg"])
            yield [("R-012", self.document is not None)]
            yield [("R-013", fits(self.document, {"loreg": range(1, 2)}))]
            known = fits(self.document, {"requires": {"read": [ANYTHING]}})
            self.features = self.document["requires"]["read"] if known else []
            yield [("R-015", all(name in FEATURES for name in self.features if isinstance(name, str)))]
            self.targets = members(self.document.get("targets"))
            roles = {name: members(members(target).get("tensors")) for name, target in self.targets.items()}
            stated = [(f"{name}/{role}", value) for name in roles for role, value in roles[name].items()]
            yield [*self.document_rules(self.document), ("R-027", {key for key, _ in stated} == {*self.tensors})]
            yield (("R-035", digest(self.data(key)) == value) for key, value in stated)

    def document_rules(self, document: dict[str, Any]) -> Iterator[tuple[str, object]]:
        """Rules about the header of a native file and its document."""
        for key, record in self.tensors.items():
            yield from [("R-009", NAME.fullmatch(key)), ("R-038", 0 not in record["shape"])]
        yield from ((rule, fits(document, form)) for rule, form in DOCUMENT.items())
        requires = members(document.get("requires")).values()
        yield "R-014", all(fits(names, [TEXT]) and names == sorted(set(names)) for names in requires)
        yield "R-016", all(map(REVERSE_DNS.fullmatch, members(document.get("extensions"))))
        yield "R-017", "gate" not in document or "gate" in self.features
        yield "R-020", document.get("targets") != {}
        yield "R-041", fits(members(document.get("base")), {"view?": {"scheme": TEXT}})
        for name, target in self.targets.items():
            yield "R-021", NAME.fullmatch(name)
            yield "R-017" if fits(target, {"kind": REGISTERED}) else "R-022", fits(target, {"kind": KIND})
            if fits(target, {"kind": KIND}):
                records = {r: self.tensors.get(f"{name}/{r}") for r in members(target.get("tensors"))}
                yield from target_rules(target, {role: record for role, record in records.items() if record})

    def data(self, key: str) -> bytes:
        """The bytes of a tensor."""
        begin, end = self.spans[key]
        with self.path.open("rb") as file:
            file.seek(self.start + begin)
            return file.read(end - begin)

    @property
    def identity(self) -> dict[str, str]:
        """The content digest (section 11), and the root digest of the stated fingerprints, if any (section 9.1)."""
        content: dict[str, Any] = {"targets": {}, "requires": self.features, "extensions": {}}  # none is a feature
        content |= {"gate": self.document["gate"]["tokens"]} if "gate" in self.document else {}
        for name, target in self.targets.items():
            stated = {field: target[field] for field in CONTENT if target.get(field) not in (None, SILENT.get(field))}
            digests = target["tensors"].items()
            tensors = {role: self.tensors[f"{name}/{role}"] | {"digest": value} for role, value in digests}
            content["targets"][name] = stated | {"tensors": tensors}
        identity = {"content": digest(b"loreg-content-v1\0" + canonical(content).encode())}
        roots = {name: target["fingerprint"] for name, target in self.targets.items() if "fingerprint" in target}
        return identity | ({"root": digest(b"loreg-root-v1\0" + canonical(roots).encode())} if roots else {})


def target_rules(target: Any, records: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Rules about a target of a known kind; `records` are those of its tensors, by role."""
    layout, shape, rows = target.get("layout", []), target.get("shape", []), target.get("rows")
    layouts, roles, fields = KINDS[target["kind"]]
    known = layout in [axes.split() for axes in layouts]
    count = range(len(layout), len(layout) + 1) if layout and known else range(9)
    rules = [
        ("R-023", known),
        ("R-024", fits(target, {"shape?" if "rows" in fields else "shape": [LENGTH, count]})),
        ("R-025", fits(target, {"scale": NUMBER} if "scale" in fields else {"scale?": NOTHING})),
        ("R-026", fits(target.get("tensors"), dict.fromkeys(roles, ANYTHING) | {"*": NOTHING})),
        ("R-028", all(record["dtype"] in FLOATS or "scale" not in fields for record in records.values())),
        ("R-034", fits(members(target.get("tensors")), {"*": DIGEST})),
        ("R-036", fits(target, {"fingerprint?": DIGEST})),
    ]
    yield from rules
    if not all(holds for _, holds in rules):
        return  # the others hold its fields against each other
    yield from ((rule, field not in target or field in fields) for field, rule in FIELD_RULES.items())
    stored = list(zip(layout, shape, strict=False))  # nothing, where a tokens target has no shape
    axes = {axis: [length for name, length in stored if name == axis] for axis, _ in [*stored, ("k", 0)]}
    axes |= {"base": shape, "one": [1 for _ in axes["k"]]} | ({"rows": [len(rows)]} if fits(rows, [COUNT]) else {})
    shapes = {role.rstrip("?"): template.split() for role, template in roles.items() if role.rstrip("?") in records}
    for role, template in shapes.items():
        for place, axis in enumerate(template):
            axes.setdefault(axis, records[role]["shape"][place : place + 1] or [0])  # where nothing else says it
    out, r, groups = axes.get("out", [0])[0], axes.get("r", [0])[0], target.get("groups", 1)
    divides = fits(groups, POSITIVE) and out % groups == r % groups == 0
    axes |= {"inputs": [groups * axes["in"][0]], "ranks": [r // groups]} if "groups" in fields and divides else {}
    yield "R-032", divides
    for role, template in shapes.items():
        yield ROLE_RULES[role], records[role]["shape"] == [length for axis in template for length in axes[axis]]
    yield "R-042", fits(target, {"segments?": SEGMENTS})
    if fits(target, {"segments": SEGMENTS}):
        parts, blocks = target["segments"]["parts"], target["segments"].get("interleave", 1)
        names = {part["name"] for part in parts}
        yield "R-042", len(names) == len(parts) and sum(part["length"] for part in parts) == out
        for length, rope in ((part["length"], part.get("rope", {"head": 1, "rotary": 0})) for part in parts):
            head, rotary = rope["head"], rope.get("rotary", rope["head"])
            yield "R-042", length % blocks == length % head == rotary % 2 == 0 and rotary <= head
    yield "R-043", fits(target, {"initial?": range(1, r or BEYOND)})
    if "rows" in fields:
        size, length, listed = (shape or [BEYOND])[0], target.get("length"), fits(rows, [COUNT, POSITIVE])
        grows = fits(length, range(size + 1, 2**40 + 1))
        below = length if grows else BEYOND if "length" in target else size
        yield "R-033", listed and rows == sorted(set(rows)) and rows[-1] < below
        yield "R-044", "length" not in target or grows
        yield "R-044", not (grows and listed) or len({row for row in rows if size <= row < length}) == length - size


def main() -> None:
    """Answer the requests of conformance.md, one a line, until the input ends."""
    sys.modules["loreg_reader"] = sys.modules[__name__]  # the modules beside this one import from it
    beside = [name for module, name in BESIDE.items() if Path(__file__).with_name(f"{module}.py").exists()]
    for request in map(json.loads, sys.stdin.buffer):
        operation = request["op"]
        try:
            if operation == "hello":
                reply: dict[str, Any] = HELLO | {"classes": ["reader", "validator", *beside]}
            elif operation not in ("read", "validate", *BESIDE):
                reply = {"error": f"there is no operation {operation}"}
            else:
                adapter = Adapter(request["adapter" if operation == "merge" else "file"])
                more = getattr(import_module(operation), operation)(adapter, request) if operation in BESIDE else {}
                reply = {"rules": []} if operation == "validate" else {"verdict": "accept"} | more
                reply |= adapter.identity if operation == "read" else {}
        except RefusalError as refusal:
            code, rules = refusal.args
            reply = {"rules": rules} if operation == "validate" else {"verdict": "reject", "code": code}
        except (OSError, LookupError, TypeError, ValueError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
