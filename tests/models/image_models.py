"""Tiny models of images: a vision transformer, a UNet with attention, a convolution with normalization.

Each says in ``image_shape`` what it takes, but for the batch.
"""

from __future__ import annotations

import tiny_models
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


def vit(*, seed: int = 0) -> ViTForImageClassification:
    """A kernel for patches, an encoder, a head; takes (batch, 3, 16, 16)."""
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        num_labels=5,
    )
    model = tiny_models.randomize(ViTForImageClassification(config), seed).eval()
    model.image_shape = (3, 16, 16)
    return model


class Residual(nn.Module):
    """Two convolutions around what the time says, as in the UNet of Stable Diffusion."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(2, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(torch.relu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        return self.conv2(torch.relu(hidden)) + self.conv_shortcut(x)


class Attention(nn.Module):
    """Self-attention of pixels with the names of diffusers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        pixels = x.flatten(2).transpose(1, 2)
        q, k, v = (
            each(pixels).reshape(batch, height * width, self.heads, -1).transpose(1, 2)
            for each in (self.to_q, self.to_k, self.to_v)
        )
        scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.to_out[0](mixed).transpose(1, 2).reshape(batch, channels, height, width)


class UNet(nn.Module):
    """Down, attention, up with a skip; takes (batch, 4, 8, 8) float32 and a class (batch,) int64."""

    image_shape = (4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(10, 14)
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down = Residual(8, 12, 14)
        self.downsample = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.attention = Attention(12, 3)
        self.upsample = nn.ConvTranspose2d(12, 12, 2, stride=2)
        self.up = Residual(24, 8, 14)
        self.conv_out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        time = self.class_embedding(label)
        skip = self.down(self.conv_in(image), time)
        hidden = self.upsample(self.attention(self.downsample(skip)))
        return self.conv_out(self.up(torch.cat([hidden, skip], 1), time))


def unet(*, seed: int = 0) -> UNet:
    """The module above."""
    return tiny_models.randomize(UNet(), seed).eval()


class Normalized(nn.Module):
    """A convolution whose normalization exporters fold into it; takes (batch, 4, 8, 8)."""

    image_shape = (4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))


def normalized(*, seed: int = 0) -> Normalized:
    """The module above, with the statistics of some training."""
    module = tiny_models.randomize(Normalized(), seed)
    generator = torch.Generator().manual_seed(seed)
    module.norm.running_mean.copy_(torch.randn(6, generator=generator))
    module.norm.running_var.copy_(torch.rand(6, generator=generator) + 0.5)
    return module.eval()
