"""Opening ONNX files, friendly and hostile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper

from lora_registry.errors import InvalidInputError, NotFoundError
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.sites import sites_of

WEIGHTS = {
    "w": np.arange(2048, dtype=np.float32).reshape(32, 64),
    "b": np.arange(64, dtype=np.float32),
}


def write(folder: Path, *, external: bool = False) -> Path:
    path = folder / "model.onnx"
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["y"])]
    onnx_models.graph(nodes, WEIGHTS, inputs={"x": ["n", 32]}, path=path, external=external)
    return path


def edit_external(path: Path, **fields: str) -> None:
    """Let the first external tensor say something else."""
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key in fields:
            entry.value = fields[entry.key]
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("external", [False, True])
def test_reads_shapes_dtypes_and_values(tmp_path: Path, external: bool) -> None:
    """Embedded and external tensors read the same."""
    model = OnnxModel.open(write(tmp_path, external=external))
    assert set(model.initializers) == {"w", "b"}
    assert shape_of(model.initializers["w"]) == (32, 64)
    assert dtype_of(model.initializers["w"]) == "F32"
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(model.array(name), values)


def test_external_tensors_are_windows_that_cannot_be_written(tmp_path: Path) -> None:
    """A window of the mapped file owns no memory and refuses writes."""
    array = OnnxModel.open(write(tmp_path, external=True)).array("w")
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_reads_values_from_typed_fields(tmp_path: Path) -> None:
    """float_data, and bfloat16 in int32_data, are read like raw bytes."""
    path = write(tmp_path)
    proto = onnx.load(path)
    half = np.arange(4).astype(ml_dtypes.bfloat16)
    proto.graph.initializer.append(helper.make_tensor("floats", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    proto.graph.initializer.append(
        onnx.TensorProto(
            name="half", data_type=TensorProto.BFLOAT16, dims=[4], int32_data=half.view(np.uint16).tolist()
        )
    )
    onnx.save(proto, path)
    model = OnnxModel.open(path)
    assert model.array("floats").tolist() == [1.0, 2.0, 3.0]
    assert dtype_of(model.initializers["half"]) == "BF16"
    np.testing.assert_array_equal(model.array("half"), half)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """Nothing at the path is another error than something that cannot be read."""
    with pytest.raises(NotFoundError):
        OnnxModel.open(tmp_path / "none.onnx")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model", b"\x08\x0a", os.urandom(300)])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty files, other formats and noise are refused in one line."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as refusal:
        OnnxModel.open(path)
    assert "\n" not in str(refusal.value)


def test_every_truncation_is_refused_or_reads_no_wrong_value(tmp_path: Path) -> None:
    """A file cut anywhere raises InvalidInputError and nothing else, when opened or when the tensor is looked at."""
    path = write(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        try:
            model = OnnxModel.open(path)
            values = {name: model.array(name) for name in model.initializers}
        except InvalidInputError:
            continue
        for name, array in values.items():
            np.testing.assert_array_equal(array, WEIGHTS[name])


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    """The line says which file is missing."""
    path = write(tmp_path, external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(InvalidInputError, match=re.escape("no file 'model.onnx.data' beside the model")):
        OnnxModel.open(path)


@pytest.mark.parametrize(
    "location", ["../secret", "sub/../../secret", "/etc/passwd", "C:\\secret", "..\\secret", "x\0y"]
)
def test_a_location_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """Parents, absolute paths of any system, and zero bytes never reach the file system."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(100000))
    path = write(folder, external=True)
    edit_external(path, location=location)
    with pytest.raises(InvalidInputError, match="leaves the folder"):
        OnnxModel.open(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A symbolic link beside the model is followed only inside its folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = write(folder, external=True)
    (folder / "model.onnx.data").rename(tmp_path / "secret")
    (folder / "model.onnx.data").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInputError, match="a link that leaves the folder"):
        OnnxModel.open(path)


def test_a_folder_in_place_of_a_data_file_is_refused(tmp_path: Path) -> None:
    """Only regular files are mapped."""
    path = write(tmp_path, external=True)
    (tmp_path / "model.onnx.data").unlink()
    (tmp_path / "model.onnx.data").mkdir()
    with pytest.raises(InvalidInputError, match="not a file"):
        OnnxModel.open(path)


@pytest.mark.parametrize(
    ("field", "value"), [("offset", "8"), ("offset", "-4"), ("offset", "1099511627776"), ("length", "12")]
)
def test_a_range_that_does_not_fit_is_refused(tmp_path: Path, field: str, value: str) -> None:
    """Ranges beyond the file, before it, or of another length than the shape needs."""
    path = write(tmp_path, external=True)
    (tmp_path / "model.onnx.data").write_bytes(bytes(2048 * 4))
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.initializer[1:]
    del proto.graph.node[1:]
    proto.graph.node[0].output[0] = "y"
    path.write_bytes(proto.SerializeToString())
    edit_external(path, **{field: value})
    with pytest.raises(InvalidInputError, match=r"needs bytes|bytes long|has offset"):
        OnnxModel.open(path)


def test_a_shape_that_the_embedded_bytes_do_not_fill_is_refused(tmp_path: Path) -> None:
    """The mismatch shows when the tensor is looked at, as one line."""
    path = write(tmp_path)
    proto = onnx.load(path)
    proto.graph.initializer[0].dims[0] = 1 << 40
    onnx.save(proto, path)
    model = OnnxModel.open(path)
    with pytest.raises(InvalidInputError, match="do not fit its shape"):
        model.array("w")


def test_noise_in_a_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """Bytes changed, cut out or put in: the answer is loreg's own error, or a model that can be read in full."""
    path = write(tmp_path, external=True)
    whole, random, refusals = path.read_bytes(), Random(0), []
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(random.choice((1, 1, 2, 5, 20))):
            place = random.randrange(len(broken))
            broken[place : place + random.randrange(3)] = random.randbytes(random.randrange(4))
        path.write_bytes(broken)
        try:
            model = OnnxModel.open(path)
            for name, value in model.initializers.items():
                model.array(name)
                sites_of(value)
        except InvalidInputError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda graph: graph.node[0].input.__setitem__(1, "nothing"), "nothing defines 'nothing'"),
        (lambda graph: graph.output[0].__setattr__("name", "z"), "nothing defines the output 'z'"),
        (lambda graph: graph.node[0].attribute.add(name="alpha"), "has no type"),
        (lambda graph: graph.node[0].__setattr__("op_type", ""), "has no operator"),
        (lambda graph: graph.initializer[0].dims.append(-1), "has the shape"),
    ],
)
def test_a_broken_graph_is_refused_with_its_first_problem(
    tmp_path: Path, break_it: Callable[[onnx.GraphProto], object], message: str
) -> None:
    """Dangling names, attributes without a type, nodes without an operator, negative axes."""
    path = write(tmp_path)
    proto = onnx.load(path)
    break_it(proto.graph)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidInputError, match=message):
        OnnxModel.open(path)


def test_a_missing_package_names_the_extra() -> None:
    """Without onnx the import says what to install."""
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from lora_registry.errors import MissingPackageError\n"
        "try:\n    import lora_registry.onnx.model\n"
        "except MissingPackageError as error:\n    print(error.extra, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnx ")
    assert "pip install 'loreg[onnx]'" in done.stdout
