"""The audit rules as data: what ``loreg audit --rules`` prints and what ``spec/audit-rules.md`` says.

Standard library only, so that listing the rules imports nothing heavy. A rule has one severity; where the
same thing can be bad and worse, there are two rules. Ids are never reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_registry.findings import Finding, Severity

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True, slots=True)
class Rule:
    """One audit rule.

    Attributes:
        id: ``A-001``; the ids of the format's own rules begin with ``R``.
        severity: that of all its findings.
        title: what is the case when the rule is broken, in one line.
        why: why somebody should care.
        mend: what to do about it.
    """

    id: str
    severity: Severity
    title: str
    why: str
    mend: str

    def to_json(self) -> dict[str, str]:
        """The record as a JSON object with the five field names."""
        return {
            "id": self.id,
            "severity": self.severity.value,
            "title": self.title,
            "why": self.why,
            "mend": self.mend,
        }


_TABLE = (
    # What the numbers say.
    Rule(
        "A-001",
        _ERROR,
        "a tensor, or the change it makes, holds NaN or infinity",
        "One such element spreads through every layer after it, and the merged model answers nonsense.",
        "Take an earlier checkpoint of the training run; the run diverged or overflowed its dtype.",
    ),
    Rule(
        "A-002",
        _ERROR,
        "the adapter changes nothing",
        "Every change is exactly zero: who merges or serves it gets the base model under another name.",
        "Save the adapter after training, from the process that holds the trained weights.",
    ),
    Rule(
        "A-003",
        _WARNING,
        "B, C or a delta is all zero",
        "B (of LoKr, C) starts at zero, so this target was never trained, or its weights were lost when saving.",
        "Train the target, or leave it out of the adapter.",
    ),
    Rule(
        "A-004",
        _WARNING,
        "A is all zero",
        "Trainers start A at random values: an A of zeros was lost on the way, and the target does nothing.",
        "Convert again from the original checkpoint, or leave the target out.",
    ),
    Rule(
        "A-005",
        _WARNING,
        "the scale is zero",
        "Whatever the factors hold, the target does nothing.",
        "Look at alpha in the training configuration; convert again with the right one.",
    ),
    Rule(
        "A-006",
        _WARNING,
        "the change has a lower rank than its factors store",
        "Some of the rank is dead weight: copied or zero directions cost memory and time and change nothing.",
        "Train with a lower rank, or resize the adapter to the rank it uses.",
    ),
    Rule(
        "A-007",
        _NOTE,
        "the size of a change stands out from its family",
        "A single layer far from its siblings hints at a corrupted tensor, a wrong scale, or tampering.",
        "Compare the layer with the training run; nothing is wrong if it was meant.",
    ),
    Rule(
        "A-008",
        _NOTE,
        "several targets hold the same factors",
        "Independent training never gives two layers equal factors: a conversion may have copied one of them.",
        "Compare with the original checkpoint; nothing is wrong if the base shares these weights.",
    ),
    Rule(
        "A-009",
        _NOTE,
        "the factors have more than one dtype",
        "Servers often cast all factors to one dtype, which rounds some of them in silence.",
        "Save all factors in the dtype they were trained in.",
    ),
    # How far it reaches.
    Rule(
        "A-010",
        _NOTE,
        "whole tensors replace those of the base",
        "They are no low-rank change: they override the base, weigh more, and many servers ignore them.",
        "Keep them if they were trained; else leave out what the trainer saved needlessly.",
    ),
    Rule(
        "A-011",
        _NOTE,
        "the embedding or the output head is a target",
        "They may share one tensor in the base, and they act on every token; tied weights need a decision to merge.",
        "Merge with a stated policy for tied weights, and check the vocabulary of the base.",
    ),
    Rule(
        "A-012",
        _NOTE,
        "the router of a mixture of experts is a target",
        "A small change to a router sends tokens to other experts, which no norm shows.",
        "Evaluate before use; leave routers out unless they were trained on purpose.",
    ),
    # Who made it, on what, and under which license.
    Rule(
        "A-020",
        _WARNING,
        "the name of the base model is missing",
        "Nobody can tell which model the adapter belongs to.",
        "State base.name when converting or pushing.",
    ),
    Rule(
        "A-021",
        _NOTE,
        "the revision of the base model is missing",
        "A name on a hub can point to other weights tomorrow.",
        "State base.revision: the commit of the weights that were trained on.",
    ),
    Rule(
        "A-022",
        _WARNING,
        "the license of the base model is missing",
        "A merged model is a derivative of the base: its license binds whoever ships it.",
        "State base.license as an SPDX expression.",
    ),
    Rule(
        "A-023",
        _WARNING,
        "the license of the adapter is missing",
        "Without a license nobody but its author may use the adapter.",
        "State info.license as an SPDX expression.",
    ),
    Rule(
        "A-024",
        _NOTE,
        "a license does not look like an SPDX expression",
        "License tools read SPDX; a free-form name is checked by nobody.",
        "Use an SPDX identifier, or LicenseRef-<name> for a license that SPDX does not list.",
    ),
    Rule(
        "A-025",
        _NOTE,
        "nothing tells where the scale came from",
        "The scale is normative but cannot be checked: a lost alpha or rsLoRA flag looks just like this.",
        "Convert from the original with its configuration, which is kept under origin.",
    ),
    Rule(
        "A-026",
        _NOTE,
        "targets have no fingerprint of their base tensor",
        "The adapter cannot tell its base from another model of the same shape.",
        "Push or convert with the base model at hand, which records the fingerprints.",
    ),
    Rule(
        "A-027",
        _WARNING,
        "the conversion dropped something",
        "What was dropped is in the source and not here.",
        "Read the line, and keep the source if it matters.",
    ),
    # What should not be told to strangers.
    Rule(
        "A-030",
        _ERROR,
        "the metadata holds what looks like a secret",
        "Everybody who gets the file gets the secret.",
        "Revoke the secret now, then remove it from the metadata; removing it alone does not help.",
    ),
    Rule(
        "A-031",
        _ERROR,
        "the metadata holds control characters",
        "Printed to a terminal they can hide lines, rewrite them or reorder what a person reads.",
        "Remove them; nobody needs them in metadata.",
    ),
    Rule(
        "A-032",
        _WARNING,
        "the metadata holds a path of somebody's machine",
        "It means nothing elsewhere, and tells strangers about users and machines.",
        "Replace the path by a public name, or remove it.",
    ),
    Rule(
        "A-033",
        _WARNING,
        "the metadata holds an e-mail address",
        "It is personal data, often recorded without the person knowing; info.authors is the place for those meant.",
        "Remove the address, or move it to info.authors with the consent of the person.",
    ),
    Rule(
        "A-034",
        _WARNING,
        "the metadata names a user account or a machine",
        "Trainers record who ran them and where; it helps attackers and nobody else.",
        "Remove the entry.",
    ),
    # Whether it belongs to the base that was given.
    Rule(
        "A-040",
        _ERROR,
        "the adapter does not fit the base",
        "Tensors are missing or have other shapes: it was made for another model.",
        "Use the base that the adapter names; the findings beside this one say what does not fit.",
    ),
    Rule(
        "A-041",
        _WARNING,
        "the base has the right shapes and other weights",
        "The adapter was trained on other values: it will run, and answer worse in ways that no error shows.",
        "Use the base of the recorded revision, in the form that it was trained on.",
    ),
    Rule(
        "A-042",
        _NOTE,
        "whether the base has the right weights could not be told",
        "The shapes fit, but without fingerprints a fine-tune of the same model looks the same.",
        "Record fingerprints with the base at hand that the adapter was trained on.",
    ),
)

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _TABLE}
"""Every audit rule by its id, in the order of the ids."""


def found(rule: str, place: str, message: str) -> Finding:
    """A finding of ``rule`` with the severity of that rule; KeyError for an unknown id."""
    return Finding(rule, place, message, RULES[rule].severity)
