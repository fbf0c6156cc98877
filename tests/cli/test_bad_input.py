"""Bad input gets one clear line, its exit code, and nothing written: through the command line, as users meet it."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.cli import main
from lora_registry.format.container import encode_tensors
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run loreg in a folder of its own with a registry of its own."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


def tensor(*shape: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype("<f4")
    return Tensor("F32", shape, values.tobytes())


def native(path: Path) -> Path:
    """A sound native file."""
    target = Target(
        name="model.layers.0.q_proj.weight",
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(6, 4),
        scale=2.0,
        tensors={"A": tensor(2, 4), "B": tensor(6, 2)},
    )
    write_adapter(Adapter(targets=(target,)), path)
    return path


def container(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + data


def truncated(path: Path) -> None:
    whole = native(path.with_name("whole.safetensors")).read_bytes()
    path.write_bytes(whole[:-5])


def overlapping(path: Path) -> None:
    entries = ",".join(
        f'"{name}":{{"dtype":"U8","shape":[8],"data_offsets":[{begin},{begin + 8}]}}'
        for name, begin in [("a", 0), ("b", 4)]
    )
    path.write_bytes(container(f"{{{entries}}}", bytes(12)))


def twice(path: Path) -> None:
    entry = '{"dtype":"U8","shape":[8],"data_offsets":[0,8]}'
    path.write_bytes(container(f'{{"a":{entry},"a":{entry}}}', bytes(8)))


def with_nan(path: Path) -> None:
    sound = native(path.with_name("sound.safetensors")).read_bytes()
    length = int.from_bytes(sound[:8], "little")
    header = sound[8 : 8 + length].replace(b'\\"scale\\":2,', b'\\"scale\\":NaN,').strip()
    path.write_bytes(container(header, sound[8 + length :]))


def rank_mismatch(path: Path) -> None:
    sound = native(path.with_name("sound.safetensors")).read_bytes()
    length = int.from_bytes(sound[:8], "little")
    # A of rank 2 becomes a factor of rank 4 with as many bytes; B still says 2.
    header = sound[8 : 8 + length].replace(b'"shape":[2,4]', b'"shape":[4,2]').strip()
    path.write_bytes(container(header, sound[8 + length :]))


FILES = {
    "truncated file": (truncated, "R-003"),
    "header of 2^63": (lambda path: path.write_bytes(struct.pack("<Q", 1 << 63) + b"{}"), "R-001"),
    "overlapping offsets": (overlapping, "R-008"),
    "duplicate names": (twice, "R-002"),
    "NaN in JSON": (with_nan, "R-012"),
    "rank mismatch": (rank_mismatch, "R-029"),
    "empty file": (lambda path: path.write_bytes(b""), "R-001"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("command", ["push", "convert", "show", "audit"])
def test_broken_native_files_are_refused_by_rule(run: Run, tmp_path: Path, case: str, command: str) -> None:
    """Each way to break a file is one line that names the rule, with exit code 8."""
    make, rule = FILES[case]
    path = tmp_path / "broken.loreg.safetensors"
    make(path)
    more = {"push": ["a/b:1"], "convert": ["out.loreg.safetensors"]}.get(command, [])
    result = run(command, path, *more)
    assert result.exit_code == 8, result.output
    first = result.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert rule in first
    assert "Traceback" not in result.output
    assert not (tmp_path / "out.loreg.safetensors").exists()
    assert run("list", "-q").stdout == ""


def peft_folder(folder: Path, *, weights: bytes | None = None, **config: object) -> Path:
    """What PEFT 0.21 writes for one linear layer, without PEFT."""
    folder.mkdir()
    settings = {
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "base_model_name_or_path": "someone/model",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.q_proj"
    tensors = {f"{prefix}.lora_A.weight": tensor(2, 4), f"{prefix}.lora_B.weight": tensor(6, 2)}
    if weights is None:
        (folder / "adapter_model.safetensors").write_bytes(b"".join(encode_tensors(tensors, {"format": "pt"})))
    else:
        (folder / "adapter_model.bin").write_bytes(weights)
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "NO_SUCH_METHOD"}, "NO_SUCH_METHOD"),
        ({"peft_type": "BOFT"}, "BOFT"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"a_field_from_the_future": {"on": True}}, "a_field_from_the_future"),
        ({"r": 3}, "rank"),
    ],
)
def test_what_peft_says_and_loreg_cannot_carry_is_refused_by_name(
    run: Run, tmp_path: Path, config: dict[str, object], named: str
) -> None:
    """An unknown PEFT type, a changed base, a gate, an unknown field and a wrong rank are named, with exit code 8."""
    folder = peft_folder(tmp_path / "adapter", **config)
    result = run("push", folder, "a/b:1")
    assert result.exit_code == 8, result.output
    assert named in result.stderr
    assert run("list", "-q").stdout == ""


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.line,)


def test_a_pickle_that_calls_os_system_is_refused_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    """The restricted unpickler names what it will not call."""
    proof = tmp_path / "proof"
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("archive/data.pkl", pickle.dumps(Attack(f"touch {proof}")))
        bundle.writestr("archive/version", "3\n")
    folder = peft_folder(tmp_path / "adapter", weights=archive.read_bytes())
    result = run("push", folder, "a/b:1")
    assert result.exit_code == 8, result.output
    assert "system" in result.stderr
    assert not proof.exists()


def test_a_plain_pickle_is_refused_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    """A file that is not even a torch archive is refused before anything is unpickled."""
    proof = tmp_path / "proof"
    folder = peft_folder(tmp_path / "adapter", weights=pickle.dumps(Attack(f"touch {proof}")))
    result = run("show", folder)
    assert result.exit_code == 8, result.output
    assert not proof.exists()


def base_folder(folder: Path, shape: tuple[int, int]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tensors = {"model.layers.0.q_proj.weight": tensor(*shape)}
    (folder / "model.safetensors").write_bytes(b"".join(encode_tensors(tensors, {"format": "pt"})))
    return folder


def test_a_wrong_base_is_refused_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    """Shapes that do not fit name the target and both shapes (P-035)."""
    adapter = native(tmp_path / "a.loreg.safetensors")
    result = run("merge", adapter, "--base", base_folder(tmp_path / "base", (5, 4)), "-o", tmp_path / "merged")
    assert result.exit_code == 8, result.output
    assert "q_proj" in result.stderr
    assert not (tmp_path / "merged").exists()


def test_a_missing_shard_is_named(run: Run, tmp_path: Path) -> None:
    """An index that names a shard that is not there is refused before anything is written."""
    base = base_folder(tmp_path / "base", (6, 4))
    (base / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.layers.0.q_proj.weight": "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    adapter = native(tmp_path / "a.loreg.safetensors")
    result = run("merge", adapter, "--base", base, "-o", tmp_path / "merged")
    assert result.exit_code in (3, 8), result.output
    assert "model-00001-of-00002.safetensors" in result.stderr
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["push", "no-such-folder", "a/b:1"], 3),
        (["push", "./no-such-folder", "a/b:1"], 3),
        (["show", "support/tone:1"], 3),
        (["pull", "support/tone:1", "-o", "out"], 3),
        (["rm", "support/tone:1"], 3),
        (["push", "whole.safetensors", "UPPER CASE"], 2),
        (["convert", "whole.safetensors", "out", "--to", "no-such-format"], 2),
        (["merge", "whole.safetensors"], 2),
        (["no-such-command"], 2),
    ],
)
def test_requests_that_cannot_be_met_have_their_exit_code(
    run: Run, tmp_path: Path, arguments: list[str], code: int
) -> None:
    """Not found is 3, usage is 2, and neither writes anything."""
    native(tmp_path / "whole.safetensors")
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_json_errors_are_one_json_line(run: Run, tmp_path: Path) -> None:
    """With --json the error on stderr is one JSON object with every finding."""
    path = tmp_path / "broken.loreg.safetensors"
    overlapping(path)
    result = run("show", path, "--json")
    record = json.loads(result.stderr)
    assert (record["exit"], record["error"]) == (8, "invalid-input")
    assert [finding["rule"] for finding in record["findings"]] == ["R-008"]


def test_terminal_escapes_in_names_are_shown_not_sent(run: Run, tmp_path: Path) -> None:
    """A control character in a foreign file reaches the terminal as text."""
    path = tmp_path / "escape.loreg.safetensors"
    path.write_bytes(container('{"\\u001b[31mred":{"dtype":"U8","shape":[8],"data_offsets":[0,9]}}', bytes(8)))
    result = run("show", path)
    assert result.exit_code == 8
    assert "\x1b[31mred" not in result.output
    assert "\\x1b" in result.output


@pytest.mark.parametrize("letter", ["\x1b", "\x7f", "\x9b", "\u202e", "\U000e0041"])
def test_nothing_that_hides_reaches_a_terminal(run: Run, tmp_path: Path, letter: str) -> None:
    """Controls and overrides in metadata and in file names are escaped in every output; JSON keeps their meaning.

    P-036.
    """
    path = native(tmp_path / f"a{letter}.safetensors")
    outputs = [
        run("push", path, "a:1", "--title", f"title{letter}", "--json"),
        run("show", "a:1"),
        run("list"),
        run("list", "--json"),
        run("audit", "a:1"),
        run("convert", path, tmp_path / f"b{letter}.safetensors"),
        run("pull", "a:1", "-o", tmp_path / f"c{letter}"),
        run("pull", "a:1", "-o", tmp_path / f"c{letter}", "--json"),
        shown := run("show", "a:1", "--json"),
    ]
    assert all(letter not in output.output for output in outputs)
    assert json.loads(shown.stdout)["document"]["info"]["title"] == f"title{letter}"


@pytest.mark.parametrize(
    ("option", "text", "hint"),
    [
        ("--license", "apache 2", "LicenseRef-"),
        ("--base-license", "llama3", "LicenseRef-"),
        ("--base-name", "/home/me/model", "organization/model"),
        ("--base-name", "../model", "organization/model"),
        ("--base-name", "C:\\Users\\me\\model", "organization/model"),
        ("--base-name", "D:/model", "organization/model"),
        ("--base-name", "", "leave the option away"),
        ("--base-view", "", "leave the option away"),
        ("--base-revision", " ", "leave the option away"),
    ],
)
def test_a_description_that_the_format_does_not_take_is_refused(
    run: Run, tmp_path: Path, option: str, text: str, hint: str
) -> None:
    """P-048 and P-053: no license without SPDX expression, no name that is a path of any system, nothing empty."""
    result = run("push", native(tmp_path / "a.safetensors"), "a:1", option, text)
    assert result.exit_code == 2
    assert hint in result.output
    assert run("list", "--json").stdout.strip() == "[]"


def test_a_registry_that_is_a_file_or_nobodys_home_is_refused(run: Run, tmp_path: Path) -> None:
    """A mistyped registry is not an empty one; a home folder of nobody is one line, not a traceback."""
    path = native(tmp_path / "a.safetensors")
    assert run("list", "--registry", path).exit_code == 5
    assert run("list", "--registry", "~nobody-is-called-so/loreg").exit_code == 2
    assert run("show", "~nobody-is-called-so/a").exit_code == 3


def test_a_name_that_is_neither_path_nor_reference_says_both(run: Run) -> None:
    """A mistyped folder is not only reported as missing from the registry."""
    result = run("push", "nosuch", "a/b:1")
    assert result.exit_code == 3
    assert "no file or folder nosuch here" in result.stderr


def test_a_missing_folder_is_named_and_not_a_hidden_file(run: Run, tmp_path: Path) -> None:
    """Nobody asked for the temporary name."""
    native(tmp_path / "a.loreg.safetensors")
    result = run("convert", "a.loreg.safetensors", "nodir/peft", "--to", "peft")
    assert (result.exit_code, result.stderr) == (3, "error: no such folder: nodir\n")


def test_an_onnx_base_makes_an_onnx_file(run: Run, tmp_path: Path) -> None:
    """A folder's name for the output would become a file that no command recognizes."""
    native(tmp_path / "a.loreg.safetensors")
    (tmp_path / "base.onnx").write_bytes(b"")
    result = run("merge", "a.loreg.safetensors", "--base", "base.onnx", "-o", "merged")
    assert result.exit_code == 2
    assert r"must be called *.onnx" in result.stderr
    assert not (tmp_path / "merged").exists()


def test_damaged_bytes_are_neither_converted_nor_drawn(run: Run, tmp_path: Path) -> None:
    """A flipped bit is exit 7 and one line (P-002): a foreign format would carry it on without its digest."""
    path = native(tmp_path / "a.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for arguments in (
        ["convert", path, "out", "--to", "peft"],
        ["convert", path, "b.safetensors"],
        ["show", path, "--norms"],
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (7, "", 1)
        assert "R-035" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_norms_name_what_they_do_not_draw(run: Run, tmp_path: Path) -> None:
    """A chart of some of the targets says so."""
    rows = Target(
        name="embed.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(5, 3),
        rows=(2,),
        tensors={"value": tensor(1, 3)},
    )
    whole = native(tmp_path / "a.safetensors")
    assert "not drawn" not in run("show", whole, "--norms").stdout
    write_adapter(Adapter(targets=(rows, *read_adapter(whole))), tmp_path / "b.safetensors")
    told = run("show", tmp_path / "b.safetensors", "--norms").stdout
    assert "not drawn  1 target without low-rank factors, or not finite: embed.weight" in told
