"""Dense matrices on a device: torch's CPU stands for it, which runs the same code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from algebra_adapters import adapter, target
from click.testing import CliRunner, Result
from composed_adapters import loha
from safetensors.numpy import save_file

from lora_registry.algebra.arithmetic import computed_on, device
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.core import LowRank, svd
from lora_registry.algebra.dense import EXACT, approximate
from lora_registry.algebra.election import Convention, ties
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.lowering import lowered
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation
from lora_registry.cli import main
from lora_registry.device import dense
from lora_registry.errors import InvalidInputError, MachineError, UsageError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.ops.change import delta


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is computed by torch."""
    monkeypatch.setattr(dense, "open_cuda", lambda: torch.device("cpu"))
    with computed_on("cuda"):
        assert device() is not None
        yield
    assert device() is None


def both(
    matrix: np.ndarray, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Norm, error, largest value and product, as numpy and torch have them."""
    monkeypatch.setattr(dense, "open_cuda", lambda: torch.device("cpu"))
    found = []
    for name in ("cpu", "cuda"):
        with computed_on(name):
            made = approximate(matrix, truncation)
        product = made.matrix.left @ made.matrix.right
        found.append((np.array([made.norm, made.error, made.largest]), product))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (EXACT + 50, 900), (900, EXACT + 50)], ids=str)
@pytest.mark.parametrize("truncation", [Truncation(rank=5), Truncation(energy=0.9)], ids=str)
def test_a_matrix_is_approximated_as_by_numpy(
    shape: tuple[int, int], dtype: type, truncation: Truncation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones exactly, large ones from the same random range; the error is measured."""
    random = np.random.default_rng(0)
    decaying = random.normal(size=(shape[0], 30)) * 0.7 ** np.arange(30) @ random.normal(size=(30, shape[1]))
    matrix: np.ndarray = (decaying + 1e-3 * random.normal(size=shape)).astype(dtype)
    (told, product), (figures, made) = both(matrix, truncation, monkeypatch)
    assert np.allclose(told, figures, rtol=1e-4)
    assert np.abs(product - made).max() <= 1e-4 * np.abs(product).max()


@pytest.mark.parametrize("convention", list(Convention))
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("trims_within_adapters", [False, True])
def test_ties_are_elected_as_by_numpy(
    convention: Convention, density: float, trims_within_adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit but for the order of a sum: equal magnitudes keep the first, zeros have the sign that they have."""
    monkeypatch.setattr(dense, "open_cuda", lambda: torch.device("cpu"))
    random = np.random.default_rng(1)
    changes = [np.round(random.normal(size=(40, 30)), 1).astype(np.float32) for _ in range(3)]
    changes[1][:5] = -changes[0][:5]
    changes[2][:5] = 0
    weights = [0.5] * 3 if convention is Convention.PAPER else [1.0, -0.5, 2.0]
    thresholds = [0.3, 0.9, float("inf")] if trims_within_adapters else None
    made = []
    for name in ("cpu", "cuda"):
        with computed_on(name):
            made.append(ties(changes, density, weights, convention, thresholds))
    assert made[0].dtype == made[1].dtype == np.float32
    assert np.allclose(made[0], made[1], rtol=1e-6, atol=1e-7)
    assert np.array_equal(made[0] == 0, made[1] == 0)


@pytest.mark.usefixtures("on_device")
def test_refusals_stay_what_they_are() -> None:
    """Unequal weights, and a change whose norm leaves float64."""
    with pytest.raises(UsageError, match="one weight for all adapters"):
        ties([np.ones((2, 2), np.float32)] * 2, 0.5, [1.0, 2.0], Convention.PAPER)
    with pytest.raises(InvalidInputError, match="beyond float64"):
        svd(LowRank(np.full((4, 1), 1e160), np.ones((1, 4))))


@pytest.mark.parametrize("method", [Method.LINEAR, Method.SVD, Method.TIES, Method.MAGNITUDE])
def test_a_combination_is_the_same_change(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of factors and element by element."""
    monkeypatch.setattr(dense, "open_cuda", lambda: torch.device("cpu"))
    parts = [Weighted(Parent(adapter(target(seed=seed))), weight) for seed, weight in ((1, 0.7), (2, 0.6))]
    elementwise = method in (Method.TIES, Method.MAGNITUDE)
    recipe = Recipe(
        method=method,
        density=0.5 if elementwise else None,
        truncation=Truncation() if method is Method.LINEAR else Truncation(rank=3),
    )
    made = []
    for name in ("cpu", "cuda"):
        with computed_on(name):
            made.append(delta(combine(parts, recipe).adapter.targets[0]))
    assert np.abs(made[0] - made[1]).max() <= 1e-5 * np.abs(made[0]).max()


@pytest.mark.usefixtures("on_device")
def test_what_has_no_two_factors_gets_them() -> None:
    """A LoHa change is decomposed on the device."""
    change = loha("w", (12, 10))
    assert np.allclose(delta(lowered(change)), delta(change), atol=1e-6)


def run(*arguments: str) -> Result:
    """One command."""
    return CliRunner().invoke(main, list(arguments))


def test_the_commands_take_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Combine, resize and extract compute there."""
    monkeypatch.setattr(dense, "open_cuda", lambda: torch.device("cpu"))
    for number in (1, 2):
        write_adapter(adapter(target(seed=number)), tmp_path / f"{number}.safetensors")
        weight = np.random.default_rng(number).normal(size=(40, 30)).astype(np.float32)
        save_file({"w": weight}, tmp_path / f"base{number}.safetensors")
    one, two, base, tuned = (str(tmp_path / f"{name}.safetensors") for name in (1, 2, "base1", "base2"))
    for arguments in (
        ["combine", one, two, "--method", "ties", "--density", "0.5", "--rank", "3"],
        ["resize", one, "--rank", "1"],
        ["extract", "--base", base, "--tuned", tuned, "--rank", "4"],
    ):
        changes = []
        for name in ("cpu", "cuda"):
            out = tmp_path / f"{arguments[0]}-{name}.safetensors"
            done = run(*arguments, "-o", str(out), "--device", name)
            assert done.exit_code == 0, done.output
            changes.append(delta(next(iter(read_adapter(out)))))
        assert np.abs(changes[0] - changes[1]).max() <= 1e-5 * np.abs(changes[0]).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_commands_say_why(tmp_path: Path) -> None:
    """One line, the code of the machine, and no output."""
    write_adapter(adapter(target()), tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    done = run("resize", str(tmp_path / "a.safetensors"), "--rank", "1", "-o", str(out), "--device", "cuda")
    assert done.exit_code == MachineError.exit_code
    assert "CUDA" in done.output
    assert not out.exists()
