"""The main job of loreg from end to end, as a user runs it: ``make quickstart``.

Prepares SmolLM2, trains an adapter with PEFT, pushes and audits it, exports the base to ONNX, merges the
adapter into that file, proves it, and asks three models the same questions: the base, base and adapter in
PyTorch, and the merged ONNX file in ONNX Runtime. The last two must agree token for token and differ from
the first; otherwise the exit code is 1.

What it makes lies in ``.cache/quickstart``. The model is prepared once and the adapter trained once; everything
after that is done anew each time, in a registry of its own that leaves the user's alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare import CHECKOUT, SMOLLM2, prepare

HERE = Path(__file__).parent
WORK = CHECKOUT / ".cache" / "quickstart"
REFERENCE = "support/tone:1"
QUESTIONS = ("What is the capital of France?", "How many legs does a spider have?")
MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model said to each question, as token ids."""

    title: str
    tokens: tuple[tuple[int, ...], ...]


def main() -> int:
    started = time.monotonic()
    os.environ["LOREG_HOME"] = str(WORK / "registry")
    WORK.mkdir(parents=True, exist_ok=True)
    adapter, base_onnx, merged_onnx = WORK / "my-peft-adapter", WORK / "base.onnx", WORK / "merged.onnx"
    forget(WORK / "registry", *WORK.glob("base.onnx*"), *WORK.glob("merged.onnx*"))

    say(f"The base model: {SMOLLM2.name}")
    base = prepare(SMOLLM2)
    say("An adapter, trained with PEFT on forty lines")
    if is_newer(adapter / "adapter_model.safetensors", than=[HERE / "data.jsonl", HERE / "train.py"]):
        print(f"already trained: {shown(adapter)}", flush=True)
    else:
        run(sys.executable, HERE / "train.py", base, adapter)
    say("Into the registry, and what an auditor would say")
    loreg("push", adapter, REFERENCE, "--base", base, "--base-license", SMOLLM2.license, "--license", SMOLLM2.license)
    loreg("audit", REFERENCE, "--base", base)
    say("The base as ONNX, and the adapter merged into it")
    loreg("export", base, "-o", base_onnx)
    loreg("merge", REFERENCE, "--base", base_onnx, "-o", merged_onnx)
    loreg("verify", merged_onnx, "--base", base, "--adapter", REFERENCE)
    say("The same questions to all three")
    code = compare(base, adapter, merged_onnx)
    print(f"{time.monotonic() - started:.0f} seconds; what was made lies in {shown(WORK)}")
    return code


def compare(base: Path, adapter: Path, merged_onnx: Path) -> int:
    """Ask, print the answers side by side, and return the exit code."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    plain, adapted = in_torch(base, adapter, prompts)
    merged = in_onnxruntime(merged_onnx, prompts, tokenizer.eos_token_id)
    print_table(tokenizer, plain, adapted, merged)
    if adapted.tokens != merged.tokens:
        print("FAILED: the merged ONNX file does not say what base and adapter say in PyTorch")
        return 1
    if any(before == after for before, after in zip(plain.tokens, adapted.tokens, strict=True)):
        print("FAILED: the adapter changed no answer")
        return 1
    lengths = " and ".join(str(len(tokens)) for tokens in merged.tokens)
    print(f"PyTorch with the adapter and ONNX Runtime agree token for token ({lengths} tokens).")
    return 0


def in_torch(base: Path, adapter: Path, prompts: list[list[int]]) -> tuple[Answers, Answers]:
    """Greedy answers of the base alone, and of the base with the adapter that PEFT attaches."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT uses an old name of theirs

    def answer(model: Any) -> tuple[tuple[int, ...], ...]:
        with torch.no_grad():
            whole = [
                model.generate(
                    input_ids=torch.tensor([prompt]),
                    attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                    do_sample=False,
                    max_new_tokens=MAX_NEW_TOKENS,
                )[0].tolist()
                for prompt in prompts
            ]
        return tuple(tuple(tokens[len(prompt) :]) for prompt, tokens in zip(prompts, whole, strict=True))

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    plain = Answers("base", answer(model))
    return plain, Answers("base + adapter (PyTorch)", answer(PeftModel.from_pretrained(model, adapter).eval()))


def in_onnxruntime(merged_onnx: Path, prompts: list[list[int]], end: int) -> Answers:
    """Greedy answers of the merged file, decoded with its KV cache."""
    from lora_registry.runtime.generate import generate
    from lora_registry.runtime.ort import open_session

    session = open_session(merged_onnx)
    tokens = (generate(session, prompt, max_new_tokens=MAX_NEW_TOKENS, stop={end}) for prompt in prompts)
    return Answers("merged (ONNX Runtime)", tuple(tuple(answer) for answer in tokens))


def print_table(tokenizer: Any, *answers: Answers) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("question", *(column.title for column in answers), show_lines=True)
    for row, question in enumerate(QUESTIONS):
        table.add_row(question, *(tokenizer.decode(column.tokens[row], skip_special_tokens=True) for column in answers))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def loreg(*arguments: str | Path) -> None:
    """Run the command that is installed beside this Python."""
    run(Path(sys.executable).with_name("loreg"), *arguments)


def run(*command: str | Path) -> None:
    """Print a command as one would type it, run it, and stop here where it fails."""
    name, *arguments = [Path(command[0]).name, *map(shown, command[1:])]
    print(f"$ {shlex.join([name, *arguments])}", flush=True)
    code = subprocess.run(list(map(str, command)), check=False).returncode
    if code:
        sys.exit(f"{name} ended with exit code {code}")


def say(title: str) -> None:
    print(f"\n== {title}", flush=True)


def shown(argument: str | Path) -> str:
    """A path as seen from the checkout."""
    path = Path(argument)
    return str(path.relative_to(CHECKOUT)) if path.is_absolute() and path.is_relative_to(CHECKOUT) else str(argument)


def is_newer(path: Path, *, than: list[Path]) -> bool:
    """Whether ``path`` is there, and was made after the others were changed."""
    return path.exists() and all(path.stat().st_mtime > other.stat().st_mtime for other in than)


def forget(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
