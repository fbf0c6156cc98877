"""One argument for every way to name an adapter: a registry reference, a native file, a foreign folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from lora_registry.adapter import Adapter
from lora_registry.convert.report import Report
from lora_registry.errors import NotFoundError, UsageError, refusal
from lora_registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter and where it came from.

    Attributes:
        adapter: the adapter; its tensors are read when they are looked at.
        source: what the user typed.
        report: what the conversion did; None for a native file, which needs none.
    """

    adapter: Adapter
    source: str
    report: Report | None = None


def open_any(
    source: str, registry_home: str | None, format_name: str | None = None, model: Path | None = None
) -> Opened:
    """Open what the user named.

    An existing path wins over a reference; where both exist the request is refused, because guessing
    would serve the wrong adapter in silence.

    Raises:
        NotFoundError: neither a path nor a reference.
        UsageError: both; or ``format_name`` for a reference.
    """
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise NotFoundError(f"there is no home folder for {source!r}") from None
    if path.exists():
        if not source.startswith((".", "/", "~")) and _known(source, registry_home):
            raise UsageError(
                f"{source!r} is a path here and a reference in the registry: write ./{source} for the path"
            )
        return open_path(path, format_name, model)
    if source.startswith((".", "/", "~")):
        raise NotFoundError(f"no such file or folder: {source}")
    if format_name is not None:
        raise UsageError(f"--from says how to read a file or folder, and {source!r} is a reference")
    try:
        return Opened(Registry.open(registry_home).load(source), source)
    except NotFoundError as error:
        raise NotFoundError(f"{error}, and no file or folder {source} here") from None


def open_sound(
    source: str, registry_home: str | None, format_name: str | None = None, model: Path | None = None
) -> Opened:
    """Open what the user named, and hold all of its bytes against their digests before anything follows from them.

    Raises:
        IntegrityError: the bytes are others than those that the file states.
        LoregError: whatever :func:`open_any` raises.
    """
    from lora_registry.format.data_rules import check_data

    opened = open_any(source, registry_home, format_name, model)
    if findings := check_data(opened.adapter):
        raise refusal(source, findings)
    return opened


def open_path(path: Path, format_name: str | None = None, model: Path | None = None) -> Opened:
    """Open a native file or a foreign file or folder.

    Args:
        path: what to open.
        format_name: the converter to use instead of the one that recognizes the path.
        model: the model whose adapter it is, for formats that are one model's.
    """
    from lora_registry.convert.discover import converter, detect, for_model
    from lora_registry.format.reader import is_native, read_adapter

    if format_name == "native" or (format_name is None and is_native(path)):
        if model is not None:
            raise UsageError(f"{path} is a native file, which is for no one model: leave out --model")
        return Opened(read_adapter(path), str(path))
    chosen = detect(path) if format_name is None else converter(format_name)
    adapter, report = for_model(chosen, model).read(path)
    return Opened(adapter, str(path), report)


def _known(source: str, registry_home: str | None) -> bool:
    try:
        Registry.open(registry_home).resolve(source)
    except (NotFoundError, UsageError):
        return False
    return True


class AdapterType(click.ParamType[str]):
    """A reference or a path; completes both."""

    name = "adapter"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """References of the registry that begin as typed, then whatever paths the shell knows."""
        home = ctx.params.get("registry_home")
        references = (str(record.reference) for record in Registry.open(home).list())
        known = [CompletionItem(reference) for reference in references if reference.startswith(incomplete)]
        return [*known, CompletionItem(incomplete, type="file")]


ADAPTER = AdapterType()
