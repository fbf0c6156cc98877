#!/usr/bin/env python3
"""A reader and validator of loreg adapters, written from adapter-format.md 1.0 and from nothing else.

    adapter = read("tone.loreg.safetensors")               # looks at every byte; RefusalError where a rule is broken
    adapter.targets, adapter.content, adapter.root, adapter.data("layers.0.weight/A")
    findings = Adapter("other.safetensors").validate()     # [("R-023", "targets/layers.0.weight"), ...]

Run as a program, this file answers the requests of conformance.md.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import merge
import rules
import write
from strict_json import RefusalError, canonical, digest, strict_object

CONTENT_FIELDS = ("kind", "layout", "shape", "scale", "groups", "rows", "length")
HELLO = {
    "name": "loreg-reader-python",
    "version": "1.0.0",
    "format": "1.0",
    "classes": ["reader", "validator", "writer", "editor", "merger", "prover"],
    "features": rules.FEATURES,
}


class Container:
    """A safetensors file: `tensors` has the records of its header, `findings` the rules that it breaks, and where.

    Rules are judged in the steps of conformance.md: where one finds a rule broken, those after it are not taken.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.findings = Path(path), set[tuple[str, str]]()
        self.tensors, self.metadata = dict[str, Any](), dict[str, str]()
        with self.path.open("rb") as file:
            self.start = 8 + int.from_bytes(file.read(8), "little")
            self.length = file.seek(0, os.SEEK_END) - self.start
            if self.judge("file", {"R-001": self.length >= 0 and self.start <= 8 + rules.MAX_HEADER}):
                file.seek(8)
                self.judge_header(file.read(self.start - 8))

    def judge(self, place: str, judged: dict[str, bool]) -> bool:
        """Keep as findings what does not hold at a place; whether no rule is broken so far."""
        self.findings |= {(rule, place) for rule, holds in judged.items() if not holds}
        return not self.findings

    def judge_header(self, text: bytes) -> None:
        """R-002 to R-008, and R-010."""
        try:
            self.tensors = strict_object(text.decode() if text.startswith(b"{") else "")
        except ValueError:
            self.judge("header", {"R-002": False})
            return
        self.metadata = self.tensors.pop("__metadata__", {})
        self.judge("header", {"R-004": rules.is_map(self.metadata), "R-010": len(self.tensors) <= rules.MAX_TENSORS})
        for key, record in self.tensors.items():
            self.judge(key, rules.record_rules(record))
        for key, record in self.tensors.items() if not self.findings else ():
            self.judge(key, {"R-007": rules.is_span(**record)})
        if not self.findings:
            spans = [[0, 0], *sorted(record["data_offsets"] for record in self.tensors.values())]
            follow = all(left[1] == right[0] for left, right in pairwise(spans))
            if self.judge("header", {"R-008": follow}):
                self.judge("file", {"R-003": spans[-1][1] == self.length})

    def data(self, key: str) -> bytes:
        """The bytes of a tensor."""
        begin, end = self.tensors[key]["data_offsets"]
        with self.path.open("rb") as file:
            file.seek(self.start + begin)
            return file.read(end - begin)


class Adapter(Container):
    """A native file, judged by its header alone; `document` is empty where none can be read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.document = dict[str, Any]()
        if self.findings or not self.judge("metadata", {"R-011": set(self.metadata) == {"loreg"}}):
            return
        try:
            self.document = strict_object(self.metadata["loreg"])
        except ValueError:
            self.judge("document", {"R-012": False})
            return
        known = self.judge("document", {"R-013": rules.is_int(self.document.get("loreg"), 1, 1)})
        if known and self.judge("document", {"R-015": rules.knows(rules.features(self.document))}):
            self.judge_document()

    def judge_document(self) -> None:
        """R-009, R-014, and R-016 to R-044."""
        for key, record in self.tensors.items():
            self.judge(key, {"R-009": rules.is_name(key), "R-038": 0 not in record["shape"]})
        self.judge("document", rules.document_rules(self.document))
        for name, target in self.targets.items():
            found = {role: self.tensors[key] for key, role, _ in self.stated(name) if key in self.tensors}
            self.judge(f"targets/{name}", rules.target_rules(name, target, found))
        keys = {key for name in self.targets for key, _, _ in self.stated(name)}
        self.judge("header", {"R-027": keys == set(self.tensors)})

    def validate(self) -> list[tuple[str, str]]:
        """All that is wrong, R-035 included, for which the data is read."""
        tensors = [] if self.findings else [tensor for name in self.targets for tensor in self.stated(name)]
        for key, _, stated in tensors:
            self.judge(key, {"R-035": digest(self.data(key)) == stated})
        return sorted(self.findings)

    @property
    def targets(self) -> dict[str, Any]:
        """The targets by the names of their base tensors; none where the document has no object of them."""
        targets: dict[str, Any] = self.document["targets"] if rules.fits(self.document, {"targets": {}}) else {}
        return targets

    @property
    def content(self) -> str:
        """The content digest (section 11), for which the header is enough."""
        features, extensions = rules.features(self.document), self.document.get("extensions", {})
        content: dict[str, Any] = {
            "targets": {name: self.content_of(name) for name in self.targets},
            "requires": features,
            "extensions": {name: value for name, value in extensions.items() if name in features},
        }
        if "gate" in self.document:
            content["gate"] = self.document["gate"]["tokens"]
        return digest(b"loreg-content-v1\0" + canonical(content).encode())

    def content_of(self, name: str) -> dict[str, Any]:
        """What the content digest depends on in a target, in the canonical form of P-019."""
        target = write.canonical_target(self.targets[name])
        content = {field: target[field] for field in CONTENT_FIELDS if field in target}
        content["tensors"] = {
            role: {"digest": stated, "dtype": self.tensors[key]["dtype"], "shape": self.tensors[key]["shape"]}
            for key, role, stated in self.stated(name)
        }
        return content

    def stated(self, name: str) -> list[tuple[str, str, Any]]:
        """Key, role and digest of the tensors that a target states; none where it states them in no object."""
        roles = self.targets[name]["tensors"] if rules.fits(self.targets[name], {"tensors": {}}) else {}
        return [(f"{name}/{role}", role, stated) for role, stated in roles.items()]

    @property
    def root(self) -> str | None:
        """The root digest of the stated fingerprints (section 9.1); None where there are none."""
        stated = {name: target["fingerprint"] for name, target in self.targets.items() if "fingerprint" in target}
        return digest(b"loreg-root-v1\0" + canonical(stated).encode()) if stated else None


def read(path: str | Path) -> Adapter:
    """An adapter that breaks no rule, every byte of it looked at; RefusalError for any other file."""
    adapter = Adapter(path)
    refuse(adapter.validate())
    return adapter


def refuse(findings: list[tuple[str, str]]) -> None:
    """Raise what section 15 says of a file with these findings; nothing where there are none."""
    broken = {rule for rule, _ in findings}
    reason = "; ".join(f"{rule} at {place!a}" for rule, place in findings)
    if broken & {"R-013", "R-015"}:
        raise RefusalError("unsupported", reason)
    if broken - {"R-035"}:
        raise RefusalError("invalid-input", reason)
    if broken:
        raise RefusalError("integrity", reason)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request of conformance.md; RefusalError where it is a refusal."""
    operation = request["op"]
    if operation == "hello":
        return HELLO
    if operation == "validate":
        return {"rules": sorted({rule for rule, _ in Adapter(request["file"]).validate()})}
    adapter = read(request["adapter" if operation == "merge" else "file"])
    if operation == "read":
        return {"verdict": "accept", "content": adapter.content} | ({"root": adapter.root} if adapter.root else {})
    if operation == "write":
        return {"verdict": "accept", "bytes": write.write(adapter, adapter.document).hex()}
    if operation == "edit":
        return {"verdict": "accept", "bytes": write.edit(adapter, request["title"]).hex()}
    if operation == "probe":
        return {"verdict": "accept", "targets": merge.probe(adapter)}
    if operation == "merge":
        base = Container(request["base"])
        refuse(sorted(base.findings))
        return {"verdict": "accept"} | merge.merge(adapter, base)
    raise ValueError(f"there is no operation {operation}")


def main() -> None:
    """Answer requests, one a line, until the input ends."""
    for line in sys.stdin.buffer:
        try:
            reply = json.dumps(answer(json.loads(line)), allow_nan=False)
        except RefusalError as refusal:
            print(refusal, file=sys.stderr)
            reply = json.dumps({"verdict": "reject", "code": refusal.code})
        except (OSError, LookupError, TypeError, ValueError) as error:
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"})
        print(reply, flush=True)


if __name__ == "__main__":
    main()
