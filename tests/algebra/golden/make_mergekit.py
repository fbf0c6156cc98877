"""Write ``mergekit.json``: numbers of mergekit's own functions on small fixed inputs.

    python make_mergekit.py > mergekit.json

Run where mergekit is installed (0.1.5 with torch 2.13 on the CPU made the file); the tests need neither. Nothing of
mergekit is in here but calls of it: the merge methods that it registers, ``sparsify``, and the decomposition of
``mergekit-extract-lora``.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorGroup
from mergekit.scripts.extract_lora import TaskVectorDecompositionTask
from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

SEED = 20261124
VECTORS = [[1.0, -2, 3, 0, 5, -6], [-1, 2, 3, 4, -5, -6], [2, 2, -1, 4, 1, 0]]
"""Those of ``test_election.py``, on which PEFT's numbers are known too."""


def matrices() -> list[torch.Tensor]:
    """Three matrices without equal magnitudes."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(5, 7, generator=generator) for _ in range(3)]


def listed(tensor: torch.Tensor) -> list[Any]:
    """The numbers, exactly: every float32 is a float64."""
    values: list[Any] = tensor.double().tolist()
    return values


def merged(method: str, deltas: list[torch.Tensor], weights: list[float], density: float, **more: Any) -> torch.Tensor:
    """What ``method`` makes of tensors that differ from a base of zeros by ``deltas``."""
    group = TensorGroup.from_tensors([torch.zeros_like(deltas[0]), *deltas], base_index=0)
    numbers = range(1, len(deltas) + 1)
    chosen = registry.get(method)
    parameters = {spec.name: spec.default for spec in chosen.spec.parameters} | more
    parameters["weight"] = PerInputValues(list(zip(numbers, weights, strict=True)))
    parameters["density"] = PerInputValues([(number, density) for number in numbers])
    return chosen.merge_group(group, **parameters)


def sums() -> list[dict[str, Any]]:
    """Task arithmetic with and without normalization, and TIES with it, which is its default."""
    cases = []
    vectors = [torch.tensor(vector) for vector in VECTORS]
    for name, deltas in (("vectors", vectors), ("matrices", matrices())):
        for method in ("task_arithmetic", "ties"):
            for weights in ([1.0, 1.0, 1.0], [1.0, -1.0, 0.5], [0.7, 0.2, 0.4]):
                for density in (1.0, 0.5, 0.3, 0.01) if method == "ties" else (1.0,):
                    if name == "vectors" and density == 0.3:
                        continue  # int(0.3 * 6) elements of which some are equal: argsort may take any of them
                    for normalize in (True, False) if method == "task_arithmetic" else (True,):
                        out = merged(method, deltas, weights, density, normalize=normalize)
                        cases.append(
                            {"inputs": name, "method": method, "weights": weights, "density": density,
                             "normalize": normalize, "out": listed(out)}
                        )  # fmt: skip
    return cases


def thinned() -> list[dict[str, Any]]:
    """``sparsify``: the largest magnitudes, and elements drawn at random, by each norm that they are rescaled to."""
    cases = []
    for method in (SparsificationMethod.magnitude, SparsificationMethod.random):
        for density in (1.0, 0.5, 0.2):
            for norm in (None, *RescaleNorm):
                torch.manual_seed(SEED)
                out = sparsify(matrices()[0], density=density, method=method, rescale_norm=norm)
                cases.append(
                    {"method": method.value, "density": density, "norm": norm and norm.value, "out": listed(out)}
                )
    return cases


def dare() -> list[dict[str, Any]]:
    """``dare_linear``: each tensor thinned at random, rescaled to its l1 norm, weighed and added; masks as drawn."""
    cases = []
    for rescale in (True, False):
        for weights in ([1.0, 1.0, 1.0], [1.0, -1.0, 0.5]):
            torch.manual_seed(SEED)
            out = merged("dare_linear", matrices(), weights, 0.5, rescale=rescale)
            torch.manual_seed(SEED)
            masks = [torch.bernoulli(torch.full_like(matrix, 0.5)) for matrix in matrices()]
            cases.append(
                {"rescale": rescale, "weights": weights, "masks": [listed(mask) for mask in masks], "out": listed(out)}
            )
    return cases


def extracted() -> list[dict[str, Any]]:
    """``mergekit-extract-lora``: a difference as two factors of a rank, which may be shared evenly."""
    generator = torch.Generator().manual_seed(SEED + 1)
    difference = torch.randn(9, 6, generator=generator)
    cases = []
    for rank in (2, 6):
        for share in (True, False):
            task = TaskVectorDecompositionTask.model_construct(
                input_task=None, max_rank=rank, distribute_scale=share, transpose=False, sv_epsilon=0
            )
            a, b = task.execute(task_vector=difference)
            cases.append({"rank": rank, "distribute_scale": share, "A": listed(a), "B": listed(b)})
    return [{"difference": listed(difference), "factors": cases}]


def main() -> None:
    """Print the file."""
    made = {
        "made_by": {
            **{package: version(package) for package in ("mergekit", "torch")},
            "python": platform.python_version(),
            "seed": SEED,
        },
        "inputs": {"vectors": VECTORS, "matrices": [listed(matrix) for matrix in matrices()]},
        "sums": sums(),
        "thinned": thinned(),
        "dare": dare(),
        "extracted": extracted(),
    }
    json.dump(made, sys.stdout, indent=None, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
