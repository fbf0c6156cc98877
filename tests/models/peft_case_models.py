"""The smallest models that have each sort of layer which PEFT's LoRA can wrap, and inputs for them.

The sorts, and the names of the layers, are those of the local classes in PEFT's ``tests/test_custom_models.py``
(0.21): whoever reads both finds the same case under the same name. Sizes are ours: no two axes of a weight alike, so
that a transposed one shows, and no weight or bias is all zeros or ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

HIDDEN = 20
ROWS = 30


class Gemm(nn.Module):
    """y = x·W + b with W a bare parameter, stored (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Self-attention with the fused projection of ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(10, 2)
        self.lin0 = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mha(x, x, x)[0]
        return self.lin0(mixed).log_softmax(-1)


class Reshape(nn.Module):
    """A batch in another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)


def _chain(**layers: nn.Module) -> nn.Module:
    """Layers by name, one after the other, and log-softmax at the end."""
    return nn.Sequential(OrderedDict({**layers, "norm": nn.LogSoftmax(dim=-1)}))


def mlp(*, bias: bool = True) -> nn.Module:
    """Two linear layers."""
    return _chain(lin0=nn.Linear(10, HIDDEN, bias=bias), relu=nn.ReLU(), lin1=nn.Linear(HIDDEN, 2, bias=bias))


def mlp_of_parameters() -> nn.Module:
    """The same with matrices that are no modules of torch."""
    return _chain(lin0=Gemm(10, HIDDEN), relu=nn.ReLU(), lin1=Gemm(HIDDEN, 2))


def embedding_conv1d() -> nn.Module:
    """An embedding, and the transposed linear layer of GPT-2, which transformers calls Conv1D."""
    return _chain(
        emb=nn.Embedding(ROWS, 5), conv1d=Conv1D(3, 5), relu=nn.ReLU(), flat=nn.Flatten(), lin0=nn.Linear(18, 2)
    )


def conv1d() -> nn.Module:
    """A kernel with one axis."""
    return _chain(
        shape=Reshape(2, 5), conv1d=nn.Conv1d(2, 3, 2), relu=nn.ReLU(), flat=nn.Flatten(), lin0=nn.Linear(12, 2)
    )


def conv2d(*, bias: bool = True) -> nn.Module:
    """A kernel with two axes of different lengths."""
    return _chain(
        shape=Reshape(5, 3, 4),
        conv2d=nn.Conv2d(5, 12, (2, 3), bias=bias),
        relu=nn.ReLU(),
        flat=nn.Flatten(),
        lin0=nn.Linear(48, 2),
    )


def conv2d_groups(groups: int, inputs: int, outputs: int) -> nn.Module:
    """A kernel in which a group of outputs sees a group of inputs."""
    return _chain(
        shape=Reshape(inputs, 3, 3),
        conv2d=nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups),
        relu=nn.ReLU(),
        flat=nn.Flatten(),
        lin0=nn.Linear(outputs * 9, 2),
    )


def conv3d() -> nn.Module:
    """A kernel with three axes."""
    return _chain(
        shape=Reshape(5, 2, 3, 4),
        conv3d=nn.Conv3d(5, 12, (1, 2, 3)),
        relu=nn.ReLU(),
        flat=nn.Flatten(),
        lin0=nn.Linear(96, 2),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP": mlp,
    "MLP without biases": lambda: mlp(bias=False),
    "MlpUsingParameters": mlp_of_parameters,
    "EmbConv1D": embedding_conv1d,
    "Conv1d": conv1d,
    "Conv2d": conv2d,
    "Conv2d without biases": lambda: conv2d(bias=False),
    "Conv2dGroups": lambda: conv2d_groups(8, 16, 32),
    "Conv2dGroups2": lambda: conv2d_groups(2, 16, 24),
    "Conv3d": conv3d,
    "MHA": Attention,
}

_WIDTHS = {"Conv2d": 60, "Conv2d without biases": 60, "Conv2dGroups": 144, "Conv2dGroups2": 144, "Conv3d": 120}


def build(name: str, *, seed: int = 0) -> nn.Module:
    """The model ``name`` in evaluation mode, every parameter normal with a deviation of 0.3."""
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def inputs(name: str, *, seed: int = 1) -> Tensor:
    """A batch for the model ``name``: float32, or numbers of rows where it begins with an embedding."""
    generator = torch.Generator().manual_seed(seed)
    if name == "EmbConv1D":
        return torch.randint(0, ROWS, (9, 6), generator=generator)
    return torch.randn(9, _WIDTHS.get(name, 10), generator=generator)
