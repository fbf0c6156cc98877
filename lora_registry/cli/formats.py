"""``loreg formats``."""

from __future__ import annotations

from lora_registry.cli._command import command, json_option
from lora_registry.cli._output import print_json, print_table


@command("formats", examples="loreg formats")
@json_option
def formats(as_json: bool) -> None:
    """List the formats that adapters are read from and written to, plugins included."""
    from lora_registry.convert.discover import installed

    rows = [("native", "loreg's own: one safetensors file, spec/adapter-format.md")]
    rows += [(name, _summary(found)) for name, found in installed().converters.items()]
    rows += installed().broken.items()
    if as_json:
        print_json([{"name": name, "summary": summary} for name, summary in rows])
    else:
        print_table(("format", "what it is"), rows)


def _summary(found: object) -> str:
    return (type(found).__doc__ or "").strip().split("\n")[0].rstrip(".").replace("``", "")
