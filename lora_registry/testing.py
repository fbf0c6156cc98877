"""What every converter owes its users, as tests that a third party can run too.

Subclass :class:`ConverterContract` in a pytest module and say what to test::

    class TestMyFormat(ConverterContract):
        converter = my_converter

        @pytest.fixture
        def sample(self, tmp_path: Path) -> Path:
            ...  # write a small adapter in the foreign format and return its path

The class needs pytest to run and nothing to import.
"""

from __future__ import annotations

import json
from pathlib import Path

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.convert.protocol import Converter
from lora_registry.convert.report import Report
from lora_registry.errors import ConflictError, LoregError
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter


class ConverterContract:
    """Tests of one converter. A subclass sets ``converter`` and has a pytest fixture ``sample``."""

    converter: Converter

    def test_name_can_be_typed(self) -> None:
        """The name is lower-case letters, digits and dashes, and is not that of the native format."""
        name = self.converter.name
        assert name.isascii()
        assert name.replace("-", "").isalnum()
        assert name == name.lower() != "native"

    def test_sniffs_its_own(self, sample: Path) -> None:
        """The converter recognizes what it reads."""
        assert self.converter.sniff(sample)

    def test_sniffs_nothing_else(self, tmp_path: Path) -> None:
        """A missing path, an empty folder, noise and a native file are not recognized, and raise nothing."""
        folder = tmp_path / "others"
        folder.mkdir()
        noise = folder / "noise"
        noise.write_bytes(bytes(range(256)))
        native = folder / "a.loreg.safetensors"
        write_adapter(one_target(), native)
        for path in (tmp_path / "missing", folder, noise, native):
            assert not self.converter.sniff(path), path

    def test_reads_what_the_format_allows(self, sample: Path, tmp_path: Path) -> None:
        """What is read passes every rule of the native format, and comes back from a native file unchanged."""
        adapter, report = self.converter.read(sample)
        assert report.format == self.converter.name
        native = tmp_path / "read.loreg.safetensors"
        write_adapter(adapter, native)
        assert content_digest(read_adapter(native)) == content_digest(adapter)

    def test_reads_the_same_twice(self, sample: Path) -> None:
        """Reading depends on the files alone."""
        first, again = (self.converter.read(sample) for _ in range(2))
        assert content_digest(first[0]) == content_digest(again[0])
        assert first[1].to_json() == again[1].to_json()

    def test_report_is_json(self, sample: Path) -> None:
        """The report of a conversion can be printed as JSON."""
        _, report = self.converter.read(sample)
        assert json.loads(json.dumps(report.to_json())) == report.to_json()

    def test_round_trip_keeps_the_meaning(self, sample: Path, tmp_path: Path) -> None:
        """Foreign to native to foreign and back is the same adapter, also by way of a native file."""
        adapter, _ = self.converter.read(sample)
        native = tmp_path / "between.loreg.safetensors"
        write_adapter(adapter, native)
        out = tmp_path / f"again{sample.suffix if sample.is_file() else ''}"
        report = self.converter.write(read_adapter(native), out)
        assert isinstance(report, Report)
        again, _ = self.converter.read(out)
        assert content_digest(again) == content_digest(adapter)

    def test_writes_only_where_nothing_is(self, sample: Path, tmp_path: Path) -> None:
        """An existing path is not touched."""
        adapter, _ = self.converter.read(sample)
        taken = tmp_path / "taken"
        taken.write_bytes(b"mine")
        try:
            self.converter.write(adapter, taken)
        except ConflictError:
            assert taken.read_bytes() == b"mine"
        else:
            raise AssertionError(f"{self.converter.name} wrote over an existing file")

    def test_leaves_nothing_after_an_error(self, sample: Path, tmp_path: Path) -> None:
        """Where it refuses to write, no file is left, whole or in part."""
        adapter, _ = self.converter.read(sample)
        folder = tmp_path / "empty"
        folder.mkdir()
        unknown = Adapter(targets=adapter.targets, requires_read=frozenset({"org.example.unheard-of"}))
        try:
            self.converter.write(unknown, folder / "out")
        except LoregError:
            assert list(folder.iterdir()) == []
        else:
            raise AssertionError(f"{self.converter.name} dropped a requirement to read in silence")


def one_target() -> Adapter:
    """The smallest adapter: rank 1 on a weight of [2, 3], scale 0.5."""
    factor_a = Tensor("F32", (1, 3), bytes(12))
    factor_b = Tensor("F32", (2, 1), bytes(8))
    target = Target(
        name="layer.weight",
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(2, 3),
        tensors={"A": factor_a, "B": factor_b},
        scale=0.5,
    )
    return Adapter(targets=(target,))
