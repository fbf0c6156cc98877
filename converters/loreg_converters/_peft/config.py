"""``adapter_config.json``: what PEFT 0.21.2 puts there, and what each field means for the tensors beside it.

PEFT drops fields that it does not know, with a warning, and then computes something else. Here a field is
either known to leave the meaning alone, or understood, or the adapter is refused by the field's name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.findings import Finding
from lora_registry.format.canonical import JsonError, decode
from loreg_converters._peft.blocks import Blocks
from loreg_converters._peft.files import CONFIG
from loreg_converters._peft.problems import broken, refuse, unsupported
from loreg_converters._peft.regex import PatternError, Regex
from loreg_converters._peft.scaling import Scaling

CONFIG_BYTES = 8 << 20  # configs with a pattern for each expert reach about one megabyte

UNDERSTOOD = frozenset({
    "peft_type", "peft_version", "base_model_name_or_path", "revision",
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "target_modules", "target_parameters", "modules_to_save", "trainable_token_indices", "bias",
    "fan_in_fan_out", "use_dora", "lora_bias", "init_lora_weights", "task_type", "auto_mapping",
    "alora_invocation_tokens", "use_bdlora",
})  # fmt: skip
"""Fields whose values the reader uses or checks."""

NEUTRAL = frozenset({
    "inference_mode", "lora_dropout", "exclude_modules", "layers_to_transform", "layers_pattern",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "ensure_weight_tying", "runtime_config", "merge_weights",
})  # fmt: skip
"""Fields that say how training went, how modules were chosen, or what another field switches on."""

TRAINING_ONLY = {
    "velora_config": "VeLoRA changes the backward pass only; the forward pass is plain LoRA",
    "monteclora_config": "MonteCLoRA samples in training only; evaluation and merging are plain LoRA",
}
"""Variants that leave the trained adapter a plain LoRA (``tuners/lora/variants.py``)."""

REFUSED = {
    "use_qalora": "QA-LoRA pools the inputs before A; it is no plain s·B·A",
    "layer_replication": "the base model itself is rebuilt from repeated layers",
    "arrow_config": "Arrow routes between several adapters at run time",
    "kasa_config": "KaSA truncates the base weights whenever PEFT loads the adapter: the change depends on the base",
    "megatron_config": "Megatron's parallel layers shard the factors",
    "enable_lora": "the merged linear layers of PEFT 0.2 cannot be told apart from their tensors",
}
"""Fields that change the meaning in a way that an adapter cannot hold, with the reason."""

PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initializations after which the trained adapter is a plain LoRA on the original base."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that take the initial adapter, or a quantization error, out of the base weights."""

COMPOSED = frozenset({"LOHA", "LOKR"})
"""PEFT types beside LORA that are read: products of two products (``tuners/loha``, ``tuners/lokr``)."""

_COMPOSED_FIELDS = frozenset({
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "auto_mapping",
    "r", "alpha", "rank_pattern", "alpha_pattern", "target_modules", "modules_to_save",
    "inference_mode", "rank_dropout", "rank_dropout_scale", "module_dropout", "init_weights", "exclude_modules",
    "layers_to_transform", "layers_pattern", "use_effective_conv2d", "decompose_both", "decompose_factor",
})  # fmt: skip
"""Every field of LoHaConfig and LoKrConfig (PEFT 0.21.2); those of the last two rows show in the tensors."""

KNOWN = UNDERSTOOD | NEUTRAL | TRAINING_ONLY.keys() | REFUSED.keys()
"""Every field of PEFT 0.21.2, and those of older versions that say nothing."""

EMBEDDINGS = frozenset({
    "embed_tokens", "lm_head", "wte", "shared", "embed_in", "embed_out", "word_embeddings", "tok_embeddings",
})  # fmt: skip
"""Embeddings that ``save_embedding_layers`` adds unasked. PEFT asks the model; these are the usual answers."""

TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Modules that PEFT saves for a task without being asked (``peft_model.py``)."""


@dataclass(frozen=True, slots=True)
class Config:
    """A config that has been checked; the fields that the tensors need.

    Attributes:
        raw: the JSON object as it stands in the file.
        target_parameters: suffix of a module, empty for all of them, to parameters.
        blocks: which factors hold the blocks of a diagonal; None where none does.
        gate: the tokens that switch an activated LoRA on; empty for any other.
        unknown: fields that this version does not know and that are switched off.
    """

    raw: Mapping[str, Json]
    scaling: Scaling
    target_modules: frozenset[str] | str | None
    target_parameters: Mapping[str, tuple[str, ...]]
    modules_to_save: frozenset[str]
    token_indices: Mapping[str, tuple[int, ...]] | tuple[int, ...] | None
    blocks: Blocks | None
    gate: tuple[int, ...]
    bias: str
    fan_in_fan_out: bool
    dora: bool
    lora_bias: bool
    version: str | None
    base_name: str | None
    revision: str | None
    unknown: tuple[str, ...]

    @property
    def saved_modules(self) -> frozenset[str]:
        """Ends of the names of modules that are saved whole, those that PEFT adds for the task included."""
        return self.modules_to_save.union(TASK_HEADS.get(str(self.raw.get("task_type")), ()))

    def parameters_of(self, module: str, *, bare: bool = True) -> list[str]:
        """The parameters of ``module`` that ``target_parameters`` names, by PEFT's suffix rule.

        Args:
            module: path in the base model.
            bare: names without a module count as well, which any module may have.
        """
        found: dict[str, None] = {}
        for suffix in (*suffixes(module), *([""] if bare else [])):
            found |= dict.fromkeys(self.target_parameters.get(suffix, ()))
        return list(found)

    def saves(self, path: str) -> bool:
        """Whether PEFT saves the base tensor ``path`` as it is, beside the low-rank tensors.

        For ``modules_to_save`` PEFT compares the ends of strings (``_set_trainable``): ``norm`` is also
        ``input_layernorm``.
        """
        module, _, leaf = path.rpartition(".")
        if (leaf == "bias" and self.bias != "none") or module.rpartition(".")[2] in EMBEDDINGS:
            return True
        parts = path.split(".")
        around = [".".join(parts[:end]) for end in range(1, len(parts))]
        return any(module.endswith(name) for name in self.saved_modules for module in around)

    def names_module(self, module: str) -> bool:
        """Whether a list in ``target_modules`` has ``module``, or an end of its path."""
        return isinstance(self.target_modules, frozenset) and not self.target_modules.isdisjoint(suffixes(module))

    def targets_module(self, module: str) -> bool | None:
        """Whether PEFT would put LoRA on ``module``; None where the config does not say.

        A string is matched from end to end, a list by equality or suffix (``tuners_utils.py``).
        """
        match self.target_modules:
            case None:
                return None  # PEFT has a table of defaults by model type
            case str() as pattern if pattern.lower() == "all-linear":
                return None
            case str() as pattern:
                try:
                    return Regex(pattern).matches(module)
                except PatternError:
                    return None
            case names if not names.isdisjoint(suffixes(module)):
                return True
        # ensure_weight_tying puts the same factors on the tied head, which it takes out of target_modules.
        return None if self.raw.get("ensure_weight_tying") else False


def suffixes(name: str) -> list[str]:
    """``a.b.c`` as ``a.b.c``, ``b.c`` and ``c``: what PEFT takes as naming it."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def checked_config(raw: Mapping[str, Json], where: str) -> Config:
    """Check a config; ``where`` is for the messages.

    Raises:
        InvalidInputError: a field of the wrong type.
        UnsupportedError: a PEFT type, variant or unknown field that an adapter cannot hold.
    """
    kind = raw.get("peft_type")
    if kind in COMPOSED:
        refuse(where, [unsupported(CONFIG, text) for text in _unknown(raw, _COMPOSED_FIELDS)])
        config = _parsed({**raw, "lora_alpha": raw.get("alpha", 8)}, where)
        return replace(config, raw=raw, unknown=tuple(sorted(set(raw) - _COMPOSED_FIELDS)))
    if kind != "LORA":
        raise UnsupportedError(f"{where}: PEFT type {kind!r} is neither LoRA, LoHa nor LoKr")
    refuse(where, [unsupported(CONFIG, text) for text in _refusals(raw)])
    return _parsed(raw, where)


def load_json(path: Path) -> dict[str, Json]:
    """The strict JSON object in a file.

    Raises:
        InvalidInputError: too large, or not a strict JSON object.
    """
    with path.open("rb") as stream:
        data = stream.read(CONFIG_BYTES + 1)
    if len(data) > CONFIG_BYTES:
        raise InvalidInputError(f"{path}: longer than {CONFIG_BYTES} bytes")
    try:
        document = decode(data)
    except JsonError as error:
        raise InvalidInputError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path}: is no JSON object")
    return document


def _refusals(raw: Mapping[str, Json]) -> list[str]:
    found = [f"{name}: {reason}" for name, reason in REFUSED.items() if raw.get(name)]
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        found.append(
            f"init_lora_weights {init!r}: the adapter is relative to base weights that this initialization changed; "
            "save it with path_initial_model_for_weight_conversion, which turns it into a plain LoRA"
        )
    elif not (init is None or isinstance(init, bool) or (isinstance(init, str) and init.lower() in PLAIN_INITS)):
        found.append(f"init_lora_weights {init!r}: unknown, and may have changed the base weights")
    return [*found, *_unknown(raw, KNOWN)]


def _unknown(raw: Mapping[str, Json], known: Collection[str]) -> list[str]:
    return [
        f"unknown field {name!r} with the value {str(value)[:60]!r}: it may change the meaning; PEFT ignores it"
        for name, value in raw.items()
        if name not in known and not _is_off(value)
    ]


def _is_off(value: Json) -> bool:
    return value is None or value is False or value in ("", [], {})


def _parsed(raw: Mapping[str, Json], where: str) -> Config:
    """Check the types of the fields that the tensors need, and report every one that is wrong."""
    fields = _Fields(raw)
    config = Config(
        raw=raw,
        scaling=Scaling(
            fields.rank("r", raw.get("r", 8)),
            fields.number("lora_alpha", raw.get("lora_alpha", 8)),
            fields.flag("use_rslora"),
            {key: fields.rank(f"rank_pattern/{key}", value) for key, value in fields.object("rank_pattern").items()},
            {
                key: fields.number(f"alpha_pattern/{key}", value)
                for key, value in fields.object("alpha_pattern").items()
            },
        ),
        target_modules=fields.text("target_modules")
        if isinstance(raw.get("target_modules"), str)
        else fields.names("target_modules"),
        target_parameters=_by_module(fields.names("target_parameters") or ()),
        modules_to_save=fields.names("modules_to_save") or frozenset(),
        token_indices=fields.token_indices(),
        blocks=fields.blocks(),
        gate=fields.gate(),
        bias=fields.text("bias") or "none",
        fan_in_fan_out=fields.flag("fan_in_fan_out"),
        dora=fields.flag("use_dora"),
        lora_bias=fields.flag("lora_bias"),
        version=fields.text("peft_version"),
        base_name=fields.text("base_model_name_or_path") or None,
        revision=fields.text("revision"),
        unknown=tuple(sorted(set(raw) - KNOWN)),
    )
    if config.bias not in ("none", "all", "lora_only"):
        fields.problem("bias", f"{config.bias!r} is not none, all or lora_only")
    refuse(where, fields.findings)
    return config


def _by_module(parameters: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for parameter in sorted(parameters):
        module, _, name = parameter.rpartition(".")
        found[module] = (*found.get(module, ()), name)
    return found


class _Fields:
    """Typed access to a JSON object that collects every problem."""

    def __init__(self, raw: Mapping[str, Json]) -> None:
        self._raw = raw
        self.findings: list[Finding] = []

    def problem(self, place: str, message: str) -> None:
        self.findings.append(broken(f"{CONFIG}/{place}", message))

    def rank(self, place: str, value: Json) -> int:
        if type(value) is int and 0 < value < 2**31:
            return value
        self.problem(place, f"{value!r} is no positive rank")
        return 1

    def number(self, place: str, value: Json) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
        self.problem(place, f"{value!r} is no finite number")
        return 1.0

    def flag(self, place: str) -> bool:
        value = self._raw.get(place)
        if value not in (None, True, False) or (isinstance(value, int | float) and not isinstance(value, bool)):
            self.problem(place, f"{value!r} is neither true nor false")
        return value is True

    def text(self, place: str) -> str | None:
        value = self._raw.get(place)
        if value is not None and not isinstance(value, str):
            self.problem(place, f"{value!r} is no string")
            return None
        return value

    def object(self, place: str) -> Mapping[str, Json]:
        value = self._raw.get(place)
        if value is not None and not isinstance(value, dict):
            self.problem(place, "is no object")
        return value if isinstance(value, dict) else {}

    def names(self, place: str) -> frozenset[str] | None:
        value = self._raw.get(place)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self.problem(place, "is no list of names")
            return frozenset()
        return frozenset(cast("list[str]", value))

    def token_indices(self) -> Mapping[str, tuple[int, ...]] | tuple[int, ...] | None:
        value = self._raw.get("trainable_token_indices")
        if value is None:
            return None
        if isinstance(value, dict):
            return {name: self._rows(f"trainable_token_indices/{name}", rows) for name, rows in value.items()}
        return self._rows("trainable_token_indices", value)

    def blocks(self) -> Blocks | None:
        found = Blocks.parse(self.object("use_bdlora")) if self._raw.get("use_bdlora") else None
        if isinstance(found, str):
            self.problem("use_bdlora", found)
            return None
        return found

    def gate(self) -> tuple[int, ...]:
        value = self._raw.get("alora_invocation_tokens")
        return () if value is None else self._rows("alora_invocation_tokens", value)

    def _rows(self, place: str, value: Json) -> tuple[int, ...]:
        if isinstance(value, list) and all(type(row) is int and row >= 0 for row in value):
            return tuple(cast("list[int]", value))
        self.problem(place, "is no list of token numbers")
        return ()
