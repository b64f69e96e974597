"""Densely connected networks (Huang, Liu, van der Maaten & Weinberger 2016): each layer sees the outputs of all layers before it.

A dense block has two forms, whose results differ by rounding at most. The concatenating form builds the input of each layer from
scratch, and its memory is quadratic in depth. In the buffered form every layer appends to one buffer, and backward recomputes the
intermediate results of each layer; its memory is linear in depth. This is the idea of Pleiss et al. 2017, implemented as one
autograd Function for the whole block, so that no tensor that autograd has saved is overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import torch_unroll.nn as unrolled
from torch_unroll.models.published import loaded


def _normalise(norm: torch.nn.BatchNorm2d, x: Tensor, again: bool) -> Tensor:
    """Batch normalisation. `again` marks the second run for a batch, which must not update the running statistics."""
    if again and norm.training:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
    return norm(x)


class DenseLayer(torch.nn.Module):
    """BN-ReLU-1×1-BN-ReLU-3×3: (N, C, H, W) -> (N, growth, H, W)."""

    def __init__(self, channels: int, growth: int, bottleneck: int, *, nn: Any):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        x = self.conv1(torch.relu(_normalise(self.norm1, x, again)))
        return self.conv2(torch.relu(_normalise(self.norm2, x, again)))


class _BufferedBlock(torch.autograd.Function):
    """A dense block as one Function that saves only the buffer. Backward runs each layer again, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, layers: list[DenseLayer], x: Tensor, *parameters: Tensor) -> Tensor:
        width, growth = x.shape[1], layers[0].conv2.out_channels
        buffer = x.new_empty(x.shape[0], width + growth * len(layers), *x.shape[2:])
        buffer[:, :width] = x
        for index, layer in enumerate(layers):
            end = width + growth * index
            buffer[:, end : end + growth] = layer(buffer[:, :end])
        ctx.layers, ctx.width, ctx.growth = layers, width, growth
        kind = x.device.type  # backward runs the layers under the same autocast, so that they round alike
        ctx.autocast = {"device_type": kind, "dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}
        ctx.save_for_backward(buffer)
        return buffer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dbuffer: Tensor) -> Any:
        (buffer,) = ctx.saved_tensors
        dbuffer = dbuffer.clone()  # gradients are accumulated into it below, and the caller's tensor must not change
        gradients: list[Tensor | None] = []
        for index in reversed(range(len(ctx.layers))):
            layer, end = ctx.layers[index], ctx.width + ctx.growth * index
            x = buffer[:, :end].detach().requires_grad_()
            parameters = [p for p in layer.parameters() if p.requires_grad]
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                y = layer(x, again=True)
            dy = dbuffer[:, end : end + ctx.growth].to(y.dtype)
            dx, *dparameters = torch.autograd.grad(y, [x, *parameters], dy)
            dbuffer[:, :end] += dx
            remaining = iter(dparameters)
            gradients[:0] = [next(remaining) if p.requires_grad else None for p in layer.parameters()]
        return None, dbuffer[:, : ctx.width], *gradients


class DenseBlock(torch.nn.Module):
    """(N, C, H, W) -> (N, C + depth·growth, H, W).

    Args:
        buffered: whether the block has the buffered form, which cannot be differentiated twice.
    """

    def __init__(self, depth: int, channels: int, growth: int, bottleneck: int, buffered: bool, *, nn: Any):
        super().__init__()
        self.buffered = buffered
        for index in range(depth):
            self.add_module(f"denselayer{index + 1}", DenseLayer(channels + index * growth, growth, bottleneck, nn=nn))

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self.children())
        if self.buffered:
            return _BufferedBlock.apply(layers, x, *self.parameters())
        for layer in layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(torch.nn.Module):
    """BN-ReLU-1×1, then pooling that halves height and width: (N, C, H, W) -> (N, filters, H/2, W/2)."""

    def __init__(self, channels: int, filters: int, *, nn: Any):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, filters, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(torch.relu(self.norm(x))))


class DenseNet(torch.nn.Module):
    """(N, 3, H, W) -> (N, classes).

    Args:
        growth: the number of channels that each layer adds.
        depths: the number of layers of each block.
        stem: the number of filters of the first convolution.
        num_classes: the number of classes.
        imagenet: whether the network begins with a 7×7 convolution of stride 2 and pooling, for 224×224 images, or with a 3×3
            convolution, for 32×32 images.
        buffered: whether dense blocks have the buffered form.
        bottleneck: the number of filters of a layer's 1×1 convolution, in units of growth.
        compression: the share of the channels that a transition keeps.
        nn: the namespace of the modules.
    """

    def __init__(
        self,
        growth: int,
        depths: tuple[int, ...],
        stem: int,
        num_classes: int = 1000,
        imagenet: bool = True,
        buffered: bool = True,
        bottleneck: int = 4,
        compression: float = 0.5,
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        self.features = nn.Sequential()
        first = nn.Conv2d(3, stem, 7, 2, 3, bias=False) if imagenet else nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.features.add_module("conv0", first)
        if imagenet:
            self.features.add_module("norm0", nn.BatchNorm2d(stem))
            self.features.add_module("relu0", nn.ReLU(inplace=True))
            self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        channels = stem
        for index, depth in enumerate(depths):
            block = DenseBlock(depth, channels, growth, bottleneck, buffered, nn=nn)
            self.features.add_module(f"denseblock{index + 1}", block)
            channels += depth * growth
            if index + 1 < len(depths):
                kept = int(channels * compression)
                self.features.add_module(f"transition{index + 1}", Transition(channels, kept, nn=nn))
                channels = kept
        self.features.add_module(f"norm{len(depths) + 1}", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def densenet121(
    num_classes: int = 1000, buffered: bool = True, *, weights: Mapping[str, Any] | None = None, nn: Any = unrolled
) -> DenseNet:
    """121 layers, growth 32, for 224×224 images; 7,978,856 parameters.

    `weights` is a state_dict to load, such as torchvision's. torchvision's counterpart of `buffered` is `memory_efficient`.
    """
    return loaded(DenseNet(32, (6, 12, 24, 16), 64, num_classes, True, buffered, nn=nn), weights)


def densenet_bc_100_12(num_classes: int = 10, buffered: bool = True, *, nn: Any = unrolled) -> DenseNet:
    """DenseNet-BC with 100 layers and growth 12, for 32×32 images; 769,162 parameters."""
    return DenseNet(12, (16, 16, 16), 24, num_classes, False, buffered, nn=nn)
