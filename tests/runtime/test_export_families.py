"""Encoder-decoders, vision models and CLIP: exported graphs compute what torch computes, base and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import exported_families
import image_models
import numpy as np
import onnx
import onnx_ir as ir
import peft_adapters
import pytest
import torch
from exported_families import FAMILIES, Family
from exported_models import relative, tokens
from onnx_models import adapter_of
from peft import LoraConfig

from lora_registry.errors import InvalidInputError, NotFoundError, UsageError
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.manifest import Manifest
from lora_registry.runtime.encoder_decoder import EncoderDecoder
from lora_registry.runtime.export import export_model, export_module
from lora_registry.runtime.ort import open_session, run
from lora_registry.runtime.verify import CACHED, verify

Get = Callable[[str], Family]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """Gives the export of a family; made when first asked for, never to be written into."""
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            made[name] = exported_families.export(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_holds(family: Get, name: str) -> None:
    """The exported folder gives the outputs of the base, on samples of other shapes than the traced ones."""
    made = family(name)
    report = verify(made.out, made.folder, None)
    assert report.holds
    assert all(output.max_rel < 1e-5 for output in report.outputs), report.lines()
    assert report.absent == ()
    assert (CACHED in {output.output for output in report.outputs}) == (name in ("t5", "whisper"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_has_a_place(family: Get, name: str) -> None:
    """Each tensor of the checkpoint is placed in one of the graphs, but for the counters of BatchNorm; all check."""
    made = family(name)
    assert all(tensor.endswith(".num_batches_tracked") for tensor in made.report.unused)
    for path in made.out.glob("*.onnx"):
        onnx.checker.check_model(path)
        content = path.read_bytes()
        assert b"wrapped" not in content
        assert str(made.folder).encode() not in content


def test_an_encoder_decoder_writes_as_transformers_does(family: Get) -> None:
    """Greedy decoding of the two files gives the tokens of ``generate``, from a padded prompt's cross-attention on."""
    made = family("t5")
    ids = tokens(1, 7)
    with torch.no_grad():
        wanted = made.module.generate(
            torch.from_numpy(ids), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    pair = EncoderDecoder(made.out)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    new = pair.generate(feeds, start=0, max_new_tokens=8)
    assert new == wanted[0, 1:].tolist()
    assert len(set(new)) > 1
    assert pair.generate(feeds, start=0, max_new_tokens=8, stop=[new[2]])[-1] == new[2]


def test_no_weight_but_a_shared_one_stands_twice(family: Get) -> None:
    """Encoder and decoder have the embedding in common; the projections of the cross-attention are the encoder's."""
    made = family("t5")
    encoder, decoder = (
        set(ir.load(made.out / f"{name}.onnx").graph.initializers)
        for name in ("encoder_model", "decoder_with_past_model")
    )
    assert len(encoder & decoder) == 1
    assert "decoder.block.0.layer.1.EncDecAttention.k.weight" in encoder
    assert "decoder.block.0.layer.1.EncDecAttention.q.weight" in decoder


def test_images_of_any_size(family: Get) -> None:
    """A convolutional network takes images of sizes that are no multiple of its strides."""
    made = family("resnet")
    image = torch.randn(1, 3, 37, 50)
    got = run(open_session(made.out / "model.onnx"), {"pixel_values": image.numpy()})["logits"]
    with torch.no_grad():
        assert relative(got, made.module(image).logits) < 1e-5


def test_texts_and_images_are_counted_apart(family: Get) -> None:
    """CLIP compares three images with two texts in one run."""
    made = family("clip")
    texts = tokens(2, 9)
    texts[:, -1] = 2
    image = torch.randn(3, 3, 16, 16)
    feeds = {"input_ids": texts, "attention_mask": np.ones_like(texts), "pixel_values": image.numpy()}
    got = run(open_session(made.out / "model.onnx"), feeds)["logits_per_image"]
    with torch.no_grad():
        wanted = made.module(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits_per_image
    assert got.shape == (3, 2)
    assert relative(got, wanted) < 1e-5


def test_an_encoder_decoder_needs_a_folder(family: Get, tmp_path: Path) -> None:
    """Two graphs do not go into one file, and half of the two is no model."""
    made = family("t5")
    with pytest.raises(UsageError, match="is 2 graphs; give a folder"):
        export_model(made.folder, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "encoder_model.onnx").write_bytes(b"")
    (tmp_path / "half" / "config.json").write_bytes(b"{}")
    with pytest.raises(NotFoundError, match=r"no decoder_with_past_model\.onnx"):
        verify(tmp_path / "half", made.folder, None)


def test_an_adapter_goes_into_both_graphs(family: Get, tmp_path: Path) -> None:
    """Exported with an adapter, an encoder-decoder is what PEFT's merged model is; the plain export is not."""
    made = family("t5")
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q", "v", "wo"])
    wrapped = peft_adapters.make_peft_adapter(FAMILIES["t5"](), config, tmp_path / "adapter")
    adapter = adapter_of(wrapped)
    report = export_model(made.folder, tmp_path / "out", adapter=adapter)
    assert report.merged == len(adapter.targets) == 8
    names = {path.name for path in report.files}
    assert {"encoder_model.onnx.receipt.json", "decoder_with_past_model.onnx.receipt.json"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}
    found = verify(tmp_path / "out", made.folder, adapter)
    assert all(output.max_rel < 1e-5 < 1e-2 < (output.effect or 0) for output in found.outputs), found.lines()
    assert not verify(made.out, made.folder, adapter).holds

    ids, decoded = tokens(2, 6), tokens(2, 5)
    pair = EncoderDecoder(tmp_path / "out")
    logits, _ = pair.step(decoded, pair.encode({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    with torch.no_grad():
        merged = peft_adapters.merged_model(wrapped)
        wanted = merged(input_ids=torch.from_numpy(ids), decoder_input_ids=torch.from_numpy(decoded)).logits
    assert relative(logits, wanted) < 1e-5


def test_export_with_an_adapter_is_export_and_merge(family: Get, tmp_path: Path) -> None:
    """One step gives the bytes of the two: graph and receipt; it is what PEFT's merged model is."""
    made = family("vit")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "projection"])
    wrapped = peft_adapters.make_peft_adapter(image_models.vit(), config, tmp_path / "adapter")
    adapter = adapter_of(wrapped)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    report = export_model(made.folder, tmp_path / "one" / "model.onnx", adapter=adapter)
    merge_onnx(adapter, made.out / "model.onnx", tmp_path / "two" / "model.onnx")
    names = sorted(path.name for path in report.files)
    assert names == ["model.onnx", "model.onnx.receipt.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert verify(tmp_path / "one" / "model.onnx", made.folder, adapter).holds
    image = torch.randn(3, 3, 16, 16)
    got = run(open_session(tmp_path / "one" / "model.onnx"), {"pixel_values": image.numpy()})["logits"]
    with torch.no_grad():
        assert relative(got, peft_adapters.merged_model(wrapped)(image).logits) < 1e-5


def test_a_foreign_adapter_leaves_nothing(family: Get, tmp_path: Path) -> None:
    """An adapter of another model is refused, and neither file nor folder is left."""
    config = LoraConfig(r=2, target_modules=["q"])
    adapter = adapter_of(peft_adapters.make_peft_adapter(FAMILIES["t5"](), config, tmp_path / "adapter"))
    with pytest.raises(InvalidInputError):
        export_model(family("vit").folder, tmp_path / "out", adapter=adapter)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_unet_by_its_module(tmp_path: Path) -> None:
    """A UNet with the names of diffusers exports as a module, takes an adapter, and is then PEFT's merged model."""
    module = image_models.unet()
    out, merged = tmp_path / "unet.onnx", tmp_path / "merged.onnx"
    batch = torch.export.Dim("batch")
    export_module(
        module,
        (torch.randn(2, *module.image_shape), torch.tensor([3, 5])),
        out,
        input_names=["sample", "label"],
        output_names=["out_sample"],
        dynamic_shapes=[{0: batch}, {0: batch}],
    )
    manifest = Manifest.of(ir.load(out).metadata_props)
    assert manifest is not None
    assert manifest.tensors.keys() == module.state_dict().keys()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v", "conv1", "time_emb_proj"])
    wrapped = peft_adapters.make_peft_adapter(module, config, tmp_path / "adapter")
    merge_onnx(adapter_of(wrapped), out, merged)
    sample, label = torch.randn(3, *image_models.UNet.image_shape), torch.tensor([1, 8, 2])
    feeds = {"sample": sample.numpy(), "label": label.numpy()}
    base, got = (run(open_session(path), feeds)["out_sample"] for path in (out, merged))
    with torch.no_grad():
        wanted = peft_adapters.merged_model(wrapped)(sample, label)
    assert relative(got, wanted) < 1e-5 < 1e-2 < relative(base, wanted)
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export_module(module, (sample, label), tmp_path / "x", input_names=["a", "b"], output_names=["c"])
