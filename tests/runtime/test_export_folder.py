"""Output folders: what lies in them, and that onnxruntime-genai runs a decoder's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import image_models
import onnx
import pytest
import tiny_models
import torch
from click.testing import CliRunner
from exported_models import Exported, tokens

from lora_registry.cli import main
from lora_registry.errors import ConflictError, InvalidInputError, UnsupportedError
from lora_registry.runtime.export import export_model
from lora_registry.runtime.export_place import check_free, publishing
from lora_registry.runtime.genai_config import genai_config
from lora_registry.runtime.ort import open_session
from lora_registry.runtime.torch_model import load

Get = Callable[[str], Exported]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama as a folder, and exported into one; never to be written into."""
    root = tmp_path_factory.mktemp("decoder")
    base = tiny_models.save(tiny_models.llama(), root / "base")
    (base / "tokenizer.json").write_text("{}")
    (base / "evil.py").write_text("raise SystemExit")
    export_model(base, root / "out")
    return base, root / "out"


def test_a_folder_has_what_programs_need(decoder: tuple[Path, Path]) -> None:
    """Graph, configuration and tokenizer lie together; weights and code of the base stay where they are."""
    base, out = decoder
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "model.onnx",
        "tokenizer.json",
    }
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_genai_config_names_what_the_graph_has(decoder: tuple[Path, Path]) -> None:
    """Every input and output of the graph is one that the document names, and none is missing."""
    _, out = decoder
    document = json.loads((out / "genai_config.json").read_text())["model"]
    session = open_session(out / document["decoder"]["filename"])
    for side, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        named = {
            name % layer if "%d" in name else name
            for name in document["decoder"][side].values()
            for layer in range(document["decoder"]["num_hidden_layers"])
        }
        assert named == {value.name for value in values}
    past = next(value for value in session.get_inputs() if value.name == "past_key_values.0.key")
    sizes = (document["decoder"]["num_key_value_heads"], document["decoder"]["head_size"])
    assert (past.shape[1], past.shape[3]) == sizes == (2, 16)
    assert (document["vocab_size"], document["eos_token_id"], document["context_length"]) == (99, 2, 64)


def test_genai_writes_as_transformers_does(decoder: tuple[Path, Path]) -> None:
    """Greedy decoding in onnxruntime-genai gives the tokens of ``generate``."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    base, out = decoder
    prompt = tokens(1, 5)
    model = genai.Model(str(out))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=24)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt[0].astype("int32"))
    while not generator.is_done():
        generator.generate_next_token()
    module = load(base).module
    wanted = module.generate(torch.from_numpy(prompt), max_length=24, do_sample=False, eos_token_id=None)
    assert generator.get_sequence(0).tolist() == wanted[0].tolist()


def test_generation_settings_are_kept(exported: Get, tmp_path: Path) -> None:
    """Sampling settings and the ends of a text come from the model's own ``generation_config.json``."""
    folder = shutil.copytree(exported("gpt2").folder, tmp_path / "base")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6, "do_sample": True, "top_p": None}))
    model = load(folder)
    document = genai_config(model, "model.onnx", cuda=True)
    assert document["model"]["eos_token_id"] == [2, 7]
    assert document["model"]["pad_token_id"] == 2
    search = document["search"]
    assert (search["temperature"], search["do_sample"], search["top_p"]) == (0.6, True, 1.0)
    assert not search["past_present_share_buffer"]
    assert document["model"]["decoder"]["session_options"]["provider_options"] == [{"cuda": {}}]
    path.write_text("[1]")
    with pytest.raises(InvalidInputError, match="not a JSON object"):
        genai_config(model, "model.onnx")


def test_caches_of_several_shapes_are_refused(exported: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-genai knows one shape of all caches; a model with more is refused by name."""
    monkeypatch.setattr("lora_registry.runtime.genai_config.cache_shapes", lambda _: [((2, 16), (2, 8))])
    with pytest.raises(UnsupportedError, match="caches of several shapes"):
        genai_config(load(exported("gpt2").folder), "model.onnx")


def test_a_folder_takes_its_place_whole(decoder: tuple[Path, Path], tmp_path: Path) -> None:
    """A folder that exists stays; told to overwrite, only one that an export made is replaced, and wholly."""
    out = shutil.copytree(decoder[1], tmp_path / "out")
    (out / "old.onnx.data").write_bytes(b"stale")
    with pytest.raises(ConflictError, match="out exists"):
        check_free(out, overwrite=False)
    check_free(out, overwrite=True)
    with publishing(out) as made:
        (made / "model.onnx").write_bytes(b"new")
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("model.onnx", b"new")]
    with pytest.raises(ConflictError, match="not the output of an export"):
        check_free(out, overwrite=True)
    with pytest.raises(ConflictError, match="not the output of an export"):
        check_free(decoder[0], overwrite=True)
    with pytest.raises(RuntimeError), publishing(out) as made:
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.onnx").read_bytes() == b"new"


def test_bfloat16_is_written_for_cuda(tmp_path: Path) -> None:
    """A BF16 graph, convolution included, is valid ONNX; the report says that no CPU runs it, and none does."""
    report = export_model(tiny_models.save(image_models.vit(), tmp_path / "base"), tmp_path / "bf16.onnx", dtype="BF16")
    assert report.dtype == "BF16"
    assert "CUDA alone" in report.notes[0]
    onnx.checker.check_model(tmp_path / "bf16.onnx", full_check=True)
    initializers = onnx.load(tmp_path / "bf16.onnx").graph.initializer
    types = {value.data_type for value in initializers if value.name.endswith(("weight", "bias"))}
    assert types == {onnx.TensorProto.BFLOAT16}
    with pytest.raises(InvalidInputError, match="cannot load"):
        open_session(tmp_path / "bf16.onnx")


def test_the_command(decoder: tuple[Path, Path], tmp_path: Path) -> None:
    """The command verifies a folder it wrote; a policy for ties without an adapter is a usage error."""
    base, out = decoder
    run = CliRunner().invoke
    found = run(main, ["verify", str(out), "--base", str(base), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["holds"] is True
    refused = run(main, ["export", str(base), "-o", str(tmp_path / "a.onnx"), "--tied", "both"])
    assert refused.exit_code == 2
    assert "give one with --adapter" in refused.output
