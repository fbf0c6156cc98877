"""``loreg completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lora_registry.cli._command import command


@command(
    "completion",
    examples="""
loreg completion bash >> ~/.bashrc
loreg completion zsh >> ~/.zshrc
loreg completion fish > ~/.config/fish/completions/loreg.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and references."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "loreg", "_LOREG_COMPLETE").source())
