"""The audit: every rule on one adapter, in one call."""

from __future__ import annotations

from collections.abc import Iterable

from lora_registry.adapter import Adapter
from lora_registry.audit.base import FitResult, check_fit
from lora_registry.audit.measure import Measure, measure
from lora_registry.audit.privacy import check_text, strings
from lora_registry.audit.provenance import check_provenance
from lora_registry.audit.reach import check_reach
from lora_registry.audit.report import AuditReport, Checked, Skipped
from lora_registry.audit.structure import check_structure, sound_targets
from lora_registry.audit.tensors import check_tensors, describe
from lora_registry.convert.report import Report
from lora_registry.findings import Finding
from lora_registry.format.document import to_document
from lora_registry.progress import Counted, Progress


def audit(
    adapter: Adapter,
    *,
    fit: FitResult | None = None,
    report: Report | None = None,
    file_findings: Iterable[Finding] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Look at everything in ``adapter``: its structure, its numbers, its metadata, and its base if compared.

    Reads every tensor twice, once for its digest and once for its numbers, a block at a time. The largest
    thing in memory is one block of 2²⁰ elements in float64, beside matrices of rank x rank.

    Args:
        adapter: the adapter.
        fit: result of comparing it with a base model (see :mod:`lora_registry.audit.base`); None where no
            base is at hand, which the report says.
        report: of the conversion that made the adapter; its losses become findings.
        file_findings: what is wrong with the framing of the native file; empty where nothing is, as for every
            file that could be opened; None where there was no native file, which the report says.
        progress: called with the number of targets measured and of all.
    """
    document = to_document(adapter)
    findings, structure = check_structure(adapter, document)
    checked, skipped = [structure], list[Skipped]()
    if file_findings is None:
        source = f"the adapter was converted from {report.format}" if report else "no native file was given"
        skipped.append(Skipped("framing of the file, R-001 to R-012", source))
    else:
        findings.extend(file_findings)
        checked.append(Checked("files", 1, "the rules R-001 to R-045"))

    sound, broken = sound_targets(adapter, findings)
    skipped.extend(broken)
    measures: list[Measure] = []
    measured = Counted(progress, len(sound))
    for target in sound:
        measures.append(measure(target))
        measured.advance(1)
    # One that nobody measured may do something: whether the adapter as a whole does nothing stays open then.
    findings.extend(check_tensors(measures, complete=not broken))
    also_checked, also_skipped = describe(measures)
    checked.extend(also_checked)
    skipped.extend(also_skipped)

    findings.extend(check_reach(adapter))
    findings.extend(check_provenance(adapter, report))
    texts = 0
    for place, key, text in strings(document):
        findings.extend(check_text(place, key, text))
        texts += 1
    checked.append(Checked("metadata strings", texts, "secrets, control characters, paths, addresses and accounts"))

    if fit is None:
        skipped.append(Skipped("fit to the base", "no base model was given"))
    else:
        findings.extend(check_fit(adapter, fit))
        checked.append(
            Checked("matches with the base", len(fit.matches), "names, shapes and fingerprints, by the merge")
        )
    return AuditReport.of(findings, checked, skipped)
