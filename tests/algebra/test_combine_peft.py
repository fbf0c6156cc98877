"""Combinations against PEFT's own ``add_weighted_adapter``, on adapters that PEFT saved."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from algebra_adapters import apart, dense
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model

from lora_registry.adapter import Adapter, Target
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation

WEIGHTS = (0.7, -0.4)
FULL = 64  # beyond every dimension of the model, so that nothing is truncated


class Model(torch.nn.Module):
    """One layer of each kind that PEFT can combine."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 12)
        self.wide = torch.nn.Linear(12, 24)
        self.tall = torch.nn.Linear(24, 9)
        self.image = torch.nn.Conv2d(6, 10, 3)


@pytest.fixture(scope="module")
def peft_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, dict[str, Adapter]]:
    """Two adapters of other ranks and scales in one model, and the same as loreg reads them."""
    torch.manual_seed(0)
    names = ["table", "wide", "tall", "image"]
    model = get_peft_model(Model(), LoraConfig(r=3, lora_alpha=6, target_modules=names), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=5, lora_alpha=4, use_rslora=True, target_modules=names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapters")
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model, {name: converter.read(folder / name)[0] for name in ("one", "two")}


def of_peft(model: PeftModel, combination: str, **options: Any) -> dict[str, np.ndarray]:
    """ΔW of every module after PEFT has combined, with outputs first and a kernel as inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(["one", "two"], list(WEIGHTS), "both", combination_type=combination, **options)
    found = {}
    for name, module in model.base_model.model.named_children():
        delta = module.get_delta_weight("both").detach().double()
        found[name] = (delta.T if name == "table" else delta.flatten(1)).numpy()
    model.delete_adapter("both")
    return found


def of_loreg(adapters: Mapping[str, Adapter], recipe: Recipe) -> dict[str, Target]:
    """Module name to target of the combination."""
    parts = [Weighted(Parent(adapter), weight) for adapter, weight in zip(adapters.values(), WEIGHTS, strict=True)]
    return {target.name.rpartition(".")[0]: target for target in combine(parts, recipe).adapter}


@pytest.mark.parametrize(
    ("combination", "options", "recipe"),
    [
        ("cat", {}, Recipe(method=Method.CAT)),
        ("cat", {}, Recipe(method=Method.LINEAR)),
        ("svd", {"svd_rank": 4}, Recipe(method=Method.SVD, truncation=Truncation(rank=4))),
        (
            "ties_svd",
            {"svd_rank": 4, "density": 0.4},
            Recipe(method=Method.TIES, density=0.4, truncation=Truncation(rank=4)),
        ),
        (
            "magnitude_prune_svd",
            {"svd_rank": 4, "density": 0.3},
            Recipe(method=Method.MAGNITUDE, density=0.3, truncation=Truncation(rank=4)),
        ),
    ],
    ids=["cat", "cat, recompressed", "svd", "ties_svd", "magnitude_prune_svd"],
)
def test_the_change_is_that_of_peft(
    peft_model: tuple[PeftModel, dict[str, Adapter]], combination: str, options: dict[str, Any], recipe: Recipe
) -> None:
    """Linear, embedding and conv layers, weights of both signs, and rsLoRA on one side."""
    model, adapters = peft_model
    expected, made = of_peft(model, combination, **options), of_loreg(adapters, recipe)
    assert expected.keys() == made.keys() == {"table", "wide", "tall", "image"}
    for name, change in expected.items():
        assert apart(dense(made[name]), change) < 2e-6, name


def test_pefts_linear_has_the_cross_terms_that_the_sum_has_not(tmp_path: Path) -> None:
    """With equal ranks PEFT adds √w·A and √w·B: what it gets beside the sum is B of one times A of the other."""
    torch.manual_seed(1)
    model = get_peft_model(Model(), LoraConfig(r=3, lora_alpha=3, target_modules=["wide"]), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=3, lora_alpha=3, target_modules=["wide"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(tmp_path))
    adapters = {name: converter.read(tmp_path / name)[0] for name in ("one", "two")}
    model.add_weighted_adapter(["one", "two"], [0.7, 0.3], "both", combination_type="linear")
    wide = model.base_model.model.wide
    of_linear = wide.get_delta_weight("both").detach().double().numpy()
    parts = [Weighted(Parent(adapter), weight) for adapter, weight in zip(adapters.values(), (0.7, 0.3), strict=True)]
    [target] = combine(parts, Recipe()).adapter
    a = {name: wide.lora_A[name].weight.detach().double().numpy() for name in adapters}
    b = {name: wide.lora_B[name].weight.detach().double().numpy() for name in adapters}
    cross = (0.7 * 0.3) ** 0.5 * (b["one"] @ a["two"] + b["two"] @ a["one"])
    assert apart(dense(target), 0.7 * b["one"] @ a["one"] + 0.3 * b["two"] @ a["two"]) < 1e-6
    assert apart(of_linear, dense(target) + cross) < 1e-6
    assert apart(of_linear, dense(target)) > 0.3


def test_dare_of_both_has_one_expectation(peft_model: tuple[PeftModel, dict[str, Adapter]]) -> None:
    """Other generators, other draws: the means over seeds approach the same sum, equally fast."""
    model, adapters = peft_model
    exact = dense(of_loreg(adapters, Recipe())["tall"])
    recipes = [
        Recipe(method=Method.DARE, density=0.5, seed=seed, truncation=Truncation(rank=FULL)) for seed in range(100)
    ]
    ours = np.mean([dense(of_loreg(adapters, recipe)["tall"]) for recipe in recipes], axis=0)
    theirs = []
    for seed in range(100):
        torch.manual_seed(seed)
        theirs.append(of_peft(model, "dare_linear_svd", svd_rank=9, density=0.5)["tall"])
    # A draw of both adapters has the variance Σ (w·ΔW)² at p = 1/2; a hundred of them a hundredth of that.
    spread = sum(
        (weight * np.linalg.norm(dense(a.target("tall.weight")))) ** 2
        for a, weight in zip(adapters.values(), WEIGHTS, strict=True)
    )
    expected = (spread / 100) ** 0.5 / np.linalg.norm(exact)
    for mean in (ours, np.mean(theirs, axis=0)):
        assert expected / 1.5 < apart(mean, exact) < expected * 1.5
