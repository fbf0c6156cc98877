"""The command line. Command modules import nothing heavy: packages that cost are imported when a command runs."""

from __future__ import annotations

import click

from lora_registry import __version__
from lora_registry.cli import (
    audit,
    combine,
    compare,
    completion,
    conformance,
    convert,
    doctor,
    export,
    extract,
    formats,
    history,
    listing,
    maintain,
    merge,
    onnx,
    probe,
    pull,
    push,
    resize,
    show,
    tag,
    unmerge,
    validate,
    verify,
)

_SECTIONS = {
    "Registry": ("push", "pull", "list", "show", "tag", "log", "rm"),
    "Adapters": ("validate", "audit", "probe", "convert", "formats"),
    "Algebra": ("combine", "resize", "compare", "extract"),
    "Models": ("merge", "verify", "unmerge", "export", "onnx"),
    "Upkeep": ("gc", "fsck", "reindex", "doctor", "conformance", "completion"),
}


class Main(click.Group):
    """The root, which lists its commands by what they are about."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group of commands."""
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(90)) for name in names])


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="loreg")
def main() -> None:
    """Keep, prove, convert, merge and export LoRA adapters.

    Wherever a command takes ADAPTER it takes a registry reference (support/tone:1), a native file
    (tone.loreg.safetensors) or a foreign folder (what PEFT's save_pretrained writes).

    Exit codes: 0 done, 1 findings, 2 usage, 3 not found, 4 conflict, 5 not allowed, 6 network, 7 integrity,
    8 invalid input, 9 inconclusive, 10 the machine (disk full, package missing).
    """


for _command in (
    push.push,
    pull.pull,
    listing.list_,
    show.show,
    tag.tag,
    tag.rm,
    history.log,
    validate.validate,
    audit.audit,
    probe.probe,
    convert.convert,
    formats.formats,
    combine.combine,
    resize.resize,
    compare.compare,
    extract.extract,
    merge.merge,
    export.export,
    verify.verify,
    unmerge.unmerge,
    onnx.onnx,
    maintain.gc,
    maintain.fsck,
    maintain.reindex,
    doctor.doctor,
    conformance.conformance,
    completion.completion,
):
    main.add_command(_command)
