"""Exported ONNX files compute what the torch model computes, and say which initializer is which weight."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models
import torch
from exported_models import DECODERS, ENCODERS, FAMILIES, Exported, relative, tokens
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from lora_registry.errors import ConflictError, NotFoundError, UnsupportedError
from lora_registry.onnx.manifest import KEY, Manifest
from lora_registry.runtime.export import export_model, export_module
from lora_registry.runtime.generate import Decoder
from lora_registry.runtime.ort import open_session, run
from lora_registry.runtime.verify import verify

Get = Callable[[str], Exported]


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (3, 9), (2, 33)])
def test_encoder_parity(exported: Get, family: str, batch: int, sequence: int) -> None:
    """Encoders and classifiers give torch's outputs for other shapes than the traced one, padding included."""
    made = exported(family)
    ids = tokens(batch, sequence)
    mask = np.ones_like(ids)
    mask[0, sequence // 2 + 1 :] = 0
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    feeds = {name: feeds[name] for name in made.report.inputs}
    got = run(open_session(made.path), feeds)
    with torch.no_grad():
        wanted = made.module(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    assert got.keys() == set(made.report.outputs)
    for name, array in got.items():
        assert relative(array, wanted[name]) < 1e-5, name


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("chunks", [(7,), (1, 1, 1), (5, 4, 1)])
def test_decoder_parity(exported: Get, family: str, chunks: tuple[int, ...]) -> None:
    """A decoder fed in pieces through its cache, which starts empty, gives the logits of the whole text."""
    made = exported(family)
    ids = tokens(3, sum(chunks))
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    decoder = Decoder(open_session(made.path))
    cache, pieces, start = decoder.empty(3), [], 0
    for length in chunks:
        part = slice(start, start + length)
        logits, cache = decoder.step(ids[:, part], cache, mask[:, part])
        pieces.append(logits)
        start += length
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        wanted = made.module(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
        ).logits
    real = mask == 1
    assert relative(np.concatenate(pieces, axis=1)[real], wanted[torch.from_numpy(real)]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_manifest_is_true(exported: Get, family: str) -> None:
    """Every tensor of the checkpoint is placed, under its own name, at an initializer with its values."""
    made = exported(family)
    model = ir.load(made.path)
    manifest = Manifest.of(model.metadata_props)
    assert manifest is not None
    checkpoint = load_file(made.folder / "model.safetensors")
    assert made.report.unused == ()
    assert checkpoint.keys() <= manifest.tensors.keys()
    for name, stored in checkpoint.items():
        place = manifest.tensors[name]
        assert not place.transposed
        value = model.graph.initializers[place.initializer].const_value.numpy()
        assert np.array_equal(value, stored.numpy()), name


@pytest.mark.parametrize(
    ("family", "head", "embedding"),
    [
        ("llama-tied", "lm_head.weight", "model.embed_tokens.weight"),
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("bert-mlm", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_tied_names_share_an_initializer(exported: Get, family: str, head: str, embedding: str) -> None:
    """The two names of a tied tensor have one place, also where the checkpoint stores one of them only."""
    manifest = Manifest.of(ir.load(exported(family).path).metadata_props)
    assert manifest is not None
    assert manifest.tensors[head] == manifest.tensors[embedding]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_this_machine_is_left(exported: Get, family: str) -> None:
    """No path, no user name and no source file name of the exporting machine stands in the bytes."""
    made = exported(family)
    content = made.path.read_bytes()
    secrets = [str(made.folder), str(Path.home()), str(Path.cwd()), str(Path(torch.__file__).parent), ".py", "wrapped"]
    if len(getpass.getuser()) > 4:  # "root" is part of other words
        secrets.append(getpass.getuser())
    assert [secret for secret in secrets if secret.encode() in content] == []


def test_module_paths_stay(exported: Get) -> None:
    """Each MatMul of a linear layer keeps its module path, by which other tools find weights."""
    scopes = [node.metadata_props["pkg.torch.onnx.name_scopes"] for node in ir.load(exported("llama-tied").path).graph]
    assert any("'model.layers.1.self_attn.q_proj', 'linear" in scope for scope in scopes)
    assert all(scope.startswith("['") for scope in scopes)


def test_equal_input_gives_equal_bytes(exported: Get, tmp_path: Path) -> None:
    """Exporting the same folder again writes the same bytes."""
    made = exported("bert")
    export_model(made.folder, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == made.path.read_bytes()


def test_a_prefix_in_the_checkpoint_is_kept(exported: Get, tmp_path: Path) -> None:
    """A bare BERT saved inside a larger model keeps the names of its checkpoint; foreign heads are reported."""
    folder = tmp_path / "prefixed"
    folder.mkdir()
    made = exported("bert")
    weights = {f"bert.{name}": value for name, value in load_file(made.folder / "model.safetensors").items()}
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in weights.items()}
    save_file(renamed | {"head.weight": torch.ones(2, 48)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((made.folder / "config.json").read_bytes())
    report = export_model(folder, tmp_path / "prefixed.onnx")
    manifest = Manifest.of(ir.load(tmp_path / "prefixed.onnx").metadata_props)
    assert manifest is not None
    assert report.unused == ("head.weight",)
    assert renamed.keys() <= manifest.tensors.keys()
    assert manifest.tensors["bert.embeddings.LayerNorm.gamma"].initializer == "embeddings.LayerNorm.weight"


@pytest.mark.slow
def test_mixture_of_experts(tmp_path: Path) -> None:
    """Stacked experts export and hold; they are placed under the model's name, which adapters use."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    folder = tiny_models.save(MixtralForCausalLM(config).eval(), tmp_path / "base")
    report = export_model(folder, tmp_path / "moe.onnx")
    manifest = Manifest.of(ir.load(tmp_path / "moe.onnx").metadata_props)
    assert manifest is not None
    assert {place.initializer for place in manifest.tensors.values()} >= {
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
    }
    assert all(".experts." in name for name in report.unused)
    assert verify(tmp_path / "moe.onnx", folder, None).holds


def test_any_module(tmp_path: Path) -> None:
    """A CNN exports through the lower door: free batch, every name, all sorts of convolution."""
    module = tiny_models.cnn()
    out = tmp_path / "cnn.onnx"
    report = export_module(
        module,
        (tiny_models.inputs(module)["image"],),
        out,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
    )
    manifest = Manifest.of(ir.load(out).metadata_props)
    assert manifest is not None
    assert manifest.tensors.keys() == module.state_dict().keys()
    assert report.outputs == ("scores",)
    image = torch.randn(5, 6, 12, 10)
    assert relative(run(open_session(out), {"image": image.numpy()})["scores"], module(image)) < 1e-5


def test_batch_norm_is_not_folded(tmp_path: Path) -> None:
    """A convolution before a BatchNorm keeps its own weights; the running statistics are placed too."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
    module(torch.randn(8, 3, 6, 6))
    out = tmp_path / "norm.onnx"
    export_module(module, (torch.randn(2, 3, 6, 6),), out, input_names=["x"], output_names=["y"])
    assert module.training
    manifest = Manifest.of(ir.load(out).metadata_props)
    assert manifest is not None
    assert {"0.weight", "1.running_mean", "1.running_var"} <= manifest.tensors.keys()
    x = torch.randn(2, 3, 6, 6)
    assert relative(run(open_session(out), {"x": x.numpy()})["y"], module.eval()(x)) < 1e-5


class Squeezing(torch.nn.Module):
    """Squeezes an axis of size 1 and, in vain, one of another size, and the input of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.linear(x)
        return y.squeeze(1) * 2, y[:, :1].squeeze(1).squeeze(-1)


def test_squeezing_in_vain(tmp_path: Path) -> None:
    """An axis that torch leaves alone, since its size is not 1, is left alone in the graph; others go."""
    module, out = Squeezing().eval(), tmp_path / "a.onnx"
    batch = torch.export.Dim("batch")
    export_module(
        module,
        (torch.randn(2, 4, 6),),
        out,
        input_names=["x"],
        output_names=["whole", "first"],
        dynamic_shapes=[{0: batch}],
    )
    x = torch.randn(3, 4, 6)
    got = run(open_session(out), {"x": x.numpy()})
    for name, wanted in zip(("whole", "first"), module(x), strict=True):
        assert relative(got[name], wanted) < 1e-6


def test_large_weights_go_beside(exported: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the size limit the weights stand in one data file that bears the model's name, and nothing else is left."""
    monkeypatch.setattr("lora_registry.runtime.onnx_write.ONE_FILE_BYTES", 1000)
    made = exported("gpt2")
    out = tmp_path / "big.onnx"
    report = export_model(made.folder, out)
    assert [path.name for path in report.files] == ["big.onnx", "big.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    locations = {value.const_value.location for value in external(out)}
    assert locations == {"big.onnx.data"}
    ids = tokens(1, 4)
    small, big = (Decoder(open_session(path)) for path in (made.path, out))
    assert np.array_equal(small.step(ids, small.empty(1))[0], big.step(ids, big.empty(1))[0])
    monkeypatch.undo()
    export_model(made.folder, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["big.onnx"]


def external(path: Path) -> list[ir.Value]:
    values = ir.load(path).graph.initializers.values()
    return [value for value in values if isinstance(value.const_value, ir.ExternalTensor)]


def test_half_precision(exported: Get, tmp_path: Path) -> None:
    """A float16 export says so, stores half the bytes, and stays near the float32 model."""
    made = exported("llama-tied")
    out = tmp_path / "half.onnx"
    report = export_model(made.folder, out, dtype="float16")
    assert report.dtype == "F16"
    ids = tokens(2, 6)
    half, full = (Decoder(open_session(path)) for path in (out, made.path))
    got, wanted = (decoder.step(ids, decoder.empty(2))[0].astype(np.float32) for decoder in (half, full))
    assert 0 < np.abs(got - wanted).max() < 2e-2 * np.abs(wanted).max()


def test_existing_files_stay(exported: Get, tmp_path: Path) -> None:
    """Without overwrite an existing file, or its data file, stops the export before the model is loaded."""
    made = exported("bert")
    (tmp_path / "a.onnx.data").write_bytes(b"mine")
    with pytest.raises(ConflictError, match=r"a\.onnx\.data exists"):
        export_model(made.folder, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx.data").read_bytes() == b"mine"


def test_a_missing_folder_leaves_nothing(exported: Get, tmp_path: Path) -> None:
    """An output folder that does not exist is named, and nothing is written anywhere."""
    with pytest.raises(NotFoundError):
        export_module(
            torch.nn.Linear(2, 2),
            (torch.ones(1, 2),),
            tmp_path / "no" / "a.onnx",
            input_names=["x"],
            output_names=["y"],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_nothing(exported: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When saving breaks half-way, neither the model nor a temporary file is left."""

    def broken(model: ir.Model, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_registry.runtime.onnx_write.ir.save", broken)
    with pytest.raises(Exception, match="the disk is full"):
        export_module(
            torch.nn.Linear(2, 2), (torch.ones(1, 2),), tmp_path / "a.onnx", input_names=["x"], output_names=["y"]
        )
    assert list(tmp_path.iterdir()) == []


class Undecided(torch.nn.Module):
    """Branches on the data, which no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_what_cannot_be_traced_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A module that the exporter cannot trace is refused by name, in one line, without the exporter's noise."""
    with pytest.raises(UnsupportedError, match="Undecided cannot be exported") as caught:
        export_module(Undecided(), (torch.ones(2),), tmp_path / "a.onnx", input_names=["x"], output_names=["y"])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_export_is_quiet(exported: Get, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither torch nor transformers prints anything; progress goes to the caller."""
    stages: list[str] = []
    folder = exported("bert").folder
    capfd.readouterr()  # of making that folder
    export_model(folder, tmp_path / "a.onnx", progress=stages.append)
    assert capfd.readouterr() == ("", "")
    assert stages == ["loading", "comparing weights", "tracing", "writing"]


def test_manifest_key(exported: Get) -> None:
    """The manifest stands under the key that the merger reads."""
    assert KEY in ir.load(exported("bert").path).metadata_props
