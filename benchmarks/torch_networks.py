"""Networks of the benchmarks in PyTorch, layer by layer as in `snipjax.models`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from snipjax.models import transformer

_VGG: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def create(name: str) -> nn.Module:
    """Returns a network by its name in `snipjax.models`, or ``gpt2_medium``."""
    return _NETWORKS[name]()


def lenet_5_caffe() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


def lenet_300_100() -> nn.Module:
    first, second = nn.Linear(784, 300), nn.Linear(300, 100)
    layers = nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(100, 10)
    return nn.Sequential(*layers)


def vgg(dense_layers: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for count, width in _VGG:
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for _ in range(dense_layers):
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


class Residual(nn.Module):
    """Adds a shortcut to a branch; both may follow a stem that they share."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None, stem: nn.Module | None
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.stem = branch, shortcut, stem

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.stem is None else self.stem(x)
        return self.branch(y) + (x if self.shortcut is None else self.shortcut(y))


def wrn_16_8() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1)]
    channels = 16
    for group in range(3):
        for block in range(2):
            width, stride = 128 * 2**group, 2 if group and not block else 1
            stem = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
            branch = nn.Sequential(
                nn.Conv2d(channels, width, 3, stride, 1),
                *(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)),
            )
            changes = channels != width
            shortcut = nn.Conv2d(channels, width, 1, stride) if changes else None
            layers.append(Residual(branch, shortcut, stem))
            channels = width
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), *pool, nn.Linear(channels, 10)]
    return nn.Sequential(*layers)


def resnet_50() -> nn.Module:
    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
        padding = size // 2
        return [
            nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
        ]

    layers = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for group, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            width, stride = 64 * 2**group, 2 if group and not block else 1
            branch = nn.Sequential(
                *(*conv(channels, width, 1), nn.ReLU()),
                *(*conv(width, width, 3, stride), nn.ReLU()),
                *conv(width, 4 * width, 1),
            )
            shortcut = conv(channels, 4 * width, 1, stride)
            changes = channels != 4 * width
            layers.append(
                Residual(branch, nn.Sequential(*shortcut) if changes else None, None)
            )
            layers.append(nn.ReLU())
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Attention of a sequence to itself, by PyTorch's own fused kernels."""

    def __init__(self, width: int, heads: int, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.inputs, self.outputs = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = self.inputs(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=self.is_causal
        )
        return self.outputs(attended.transpose(1, 2).reshape(batch, length, width))


def blocks(
    width: int, depth: int, heads: int, is_causal: bool, approximate: str
) -> Iterable[nn.Module]:
    for _ in range(depth):
        attention = Attention(width, heads, is_causal)
        yield Residual(nn.Sequential(nn.LayerNorm(width), attention), None, None)
        wide = nn.Linear(width, 4 * width), nn.GELU(approximate=approximate)
        branch = nn.Sequential(nn.LayerNorm(width), *wide, nn.Linear(4 * width, width))
        yield Residual(branch, None, None)
    yield nn.LayerNorm(width)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, 768))
        self.positions = nn.Parameter(torch.zeros(1, 197, 768))
        self.blocks = nn.Sequential(*blocks(768, 12, 12, False, "none"))
        self.classifier = nn.Linear(768, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), 1, 768), x], 1) + self.positions
        return self.classifier(self.blocks(x)[:, 0])


class GPT2(nn.Module):
    """Predicts the next token, with the embedding's transpose for the logits."""

    def __init__(self, config: transformer.Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.length, config.width))
        self.blocks = nn.Sequential(
            *blocks(config.width, config.depth, config.heads, True, "tanh")
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        return self.blocks(x) @ self.tokens.weight.T


_NETWORKS: dict[str, Callable[[], Any]] = {
    "lenet_300_100": lenet_300_100,
    "lenet_5_caffe": lenet_5_caffe,
    "vgg_d": lambda: vgg(2),
    "vgg_like": lambda: vgg(1),
    "wrn_16_8": wrn_16_8,
    "resnet_50": resnet_50,
    "vit_b_16": ViT,
    "gpt2_medium": lambda: GPT2(transformer.GPT2_MEDIUM),
}
