"""Reading a PEFT folder: config and tensors in, targets and a report out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lora_registry.adapter import Adapter, Base, Json, Kind, Target, Tensor
from lora_registry.convert.pickled import read_pickled
from lora_registry.convert.report import Report
from lora_registry.errors import NotFoundError
from lora_registry.findings import Finding
from lora_registry.format.container import open_container
from loreg_converters._peft.composed import Composed, composed_targets, kernels_unknown
from loreg_converters._peft.config import COMPOSED, TRAINING_ONLY, Config, checked_config, load_json
from loreg_converters._peft.files import CONFIG, PICKLED, WEIGHTS
from loreg_converters._peft.initial import INITIAL, initial_folder, refuse_disguised, relative_to_base
from loreg_converters._peft.places import find_places
from loreg_converters._peft.problems import broken, refuse, unsupported
from loreg_converters._peft.regex import PatternError
from loreg_converters._peft.scaling import CompiledScaling
from loreg_converters._peft.sites import Sorted, sort_tensors, unmatched
from loreg_converters._peft.targets import TargetBuilder
from loreg_converters._peft.tokens import token_targets

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
_PATH = re.compile(r"~|\.{0,2}[/\\]|[A-Za-z]:[/\\]|file:")


def read_folder(folder: Path) -> tuple[Adapter, Report]:
    """Read the adapter in ``folder``, which has an ``adapter_config.json``.

    Raises:
        InvalidInputError: the files break PEFT's format or contradict each other; carries every finding.
        UnsupportedError: they say what an adapter cannot hold, or leave open what must be known.
    """
    refuse_disguised(folder.absolute())
    raw = load_json(folder / CONFIG)
    began = initial_folder(folder, raw)
    if began is None:
        return _read(folder, raw)
    initial, _ = _read(began, load_json(began / CONFIG))  # plain by itself, or refused
    trained, report = _read(folder, {**raw, "init_lora_weights": True})
    reason = f"{raw['init_lora_weights']!r}: the factors in {INITIAL} are taken off again, at twice the rank"
    report.derived("init_lora_weights", reason)
    return relative_to_base(trained, initial), report


def _read(folder: Path, raw: Mapping[str, Json]) -> tuple[Adapter, Report]:
    """The adapter that the tensors in ``folder`` are by the config ``raw``."""
    report = Report("peft")
    config = checked_config(raw, str(folder / CONFIG))
    tensors = _tensors(folder, report)
    if config.raw["peft_type"] in COMPOSED:
        return _composed(folder, tensors, config, report)
    content = sort_tensors(tensors, config)
    findings = [*content.findings, *_training_state(content, config, report)]
    for noise in sorted(content.noise):
        report.kept("keys", f"{noise!r} stripped; PEFT's own files do not have it")
    for key in content.originals:
        report.dropped(key, "the base's own, in the place of which the saved module's is used")
    scaling, problems = _scaling(config)
    targets: list[Target] = []
    if scaling is not None:
        targets, problems = _targets(content, config, scaling, report)
    refuse(str(folder), [*findings, *problems])
    _note_untouched(content, config, report)
    base, origin = _provenance(config, report)
    return Adapter(targets=tuple(targets), base=base, origin=origin, gate=config.gate), report


def _composed(folder: Path, tensors: Mapping[str, Tensor], config: Config, report: Report) -> tuple[Adapter, Report]:
    """The adapter in a folder of LoHa or LoKr."""
    scaling, problems = _scaling(config)
    content = composed_targets(tensors, config, scaling) if scaling is not None else Composed(findings=problems)
    if not content.targets and not content.findings:
        content.findings.append(broken("keys", "there is no tensor of an adapter"))
    refuse(str(folder), content.findings)
    for noise in sorted(content.noise):
        report.kept("keys", f"{noise!r} stripped; PEFT's own files do not have it")
    if kernels_unknown(content.targets):
        report.derived("layouts", "matrices [out, in]; PEFT flattens kernels, which the shapes of the base will show")
    base, origin = _provenance(config, report)
    return Adapter(targets=tuple(content.targets), base=base, origin=origin), report


def _tensors(folder: Path, report: Report) -> Mapping[str, Tensor]:
    safe, pickled = folder / WEIGHTS, folder / PICKLED
    if safe.is_file():
        if pickled.is_file():
            report.kept(PICKLED, f"not read: PEFT itself prefers {WEIGHTS}")
        container = open_container(safe)
        return {name: container.tensor(name) for name in container.entries}
    if pickled.is_file():
        report.kept(PICKLED, "read without running anything in it")
        return read_pickled(pickled)
    raise NotFoundError(f"{folder}: neither {WEIGHTS} nor {PICKLED} beside {CONFIG}")


def _training_state(content: Sorted, config: Config, report: Report) -> list[Finding]:
    variants = [name for name in TRAINING_ONLY if config.raw.get(name)]
    if content.training and not variants:
        return [broken(key, "is training state of a variant that the config does not name") for key in content.training]
    for name in variants:
        report.dropped(name, TRAINING_ONLY[name])
    for key in content.training:
        report.dropped(key, "only training needs it")
    return []


def _scaling(config: Config) -> tuple[CompiledScaling | None, list[Finding]]:
    try:
        return config.scaling.compiled(), []
    except (PatternError, re.error) as error:
        return None, [unsupported(f"{CONFIG}/rank_pattern or alpha_pattern", str(error))]


def _targets(
    content: Sorted, config: Config, scaling: CompiledScaling, report: Report
) -> tuple[list[Target], list[Finding]]:
    placed = find_places(content.sites, config)
    values = dict(content.values)
    rows, findings = token_targets(content.tokens, values, config, report)
    builder = TargetBuilder(config, scaling, values, report)
    builder.build(placed.places)
    targets = [*builder.targets, *rows]
    targets += [
        Target(name=path, kind=Kind.FULL, layout=(), shape=tensor.shape, tensors={"value": tensor})
        for path, tensor in values.items()
        if path not in builder.taken
    ]
    findings = [*placed.findings, *builder.findings, *findings, *(_always_on(targets) if config.gate else [])]
    seen: set[str] = set()
    for target in targets:
        if target.name in seen:
            findings.append(unsupported(target.name, "is changed in two ways at once"))
        seen.add(target.name)
    if not targets and not findings:
        findings.append(broken("keys", "there is no tensor of an adapter"))
    return targets, findings


def _always_on(targets: Sequence[Target]) -> Iterator[Finding]:
    """What is on before the tokens of an activated LoRA come, beside factors that are not."""
    for target in targets:
        extra = target.tensors.keys() - {"A", "B", "delta"}
        if extra:
            what = ", ".join(sorted(extra))
            yield unsupported(target.name, f"a gate opens for the whole adapter, and PEFT applies this {what} always")


def _note_untouched(content: Sorted, config: Config, report: Report) -> None:
    """Names in the config on which the file has nothing; PEFT leaves those modules as they are, and so do we."""
    if isinstance(config.target_modules, frozenset):
        for name in unmatched(config.target_modules, [*content.sites, *_insides(content)]):
            report.derived(name, "in target_modules, but no tensor is on it: unchanged")
    around = _ancestors(content.values)
    for name in sorted(config.modules_to_save):
        if any(module.endswith(name) for module in around):
            continue
        report.derived(name, "in modules_to_save, but no tensor is in it: unchanged")


def _insides(content: Sorted) -> list[str]:
    return [site.inside for site in content.sites.values() if site.inside is not None]


def _ancestors(paths: Mapping[str, Tensor]) -> set[str]:
    return {path[: match.start()] for path in paths for match in re.finditer(r"\.", path)}


def _provenance(config: Config, report: Report) -> tuple[Base, dict[str, Json]]:
    name = config.base_name
    if name is not None and (not _HUB_NAME.fullmatch(name) or re.search(r"checkpoint-\d+$", name)):
        report.dropped("base_model_name_or_path", "a path on the machine that trained it, not the name of a model")
        name = None
    revision = config.revision if name is not None else None
    gone = (*TRAINING_ONLY, "use_bdlora")  # what the adapter has no trace of any more
    ours = {"base_model_name_or_path", "revision", *(name for name in gone if config.raw.get(name))}
    kept: dict[str, Json] = {}
    for field, value in config.raw.items():
        if field in ours:
            continue
        if _holds_path(value):
            report.dropped(field, "holds a path on the machine that trained it")
        else:
            kept[field] = value
    for field in config.unknown:
        report.kept(field, "an unknown field, switched off")
    return Base(name=name, revision=revision), {"format": "peft", "version": config.version, "config": kept}


def _holds_path(value: Json) -> bool:
    match value:
        case str():
            return bool(_PATH.match(value))
        case list():
            return any(_holds_path(item) for item in value)
        case dict():
            return any(_holds_path(item) for item in value.values())
    return False
