"""Residual networks (He, Zhang, Ren & Sun 2015), whose blocks add their input to their output, and plain networks without
shortcuts.

The ImageNet form has torchvision's names and shapes. The CIFAR form is that of the paper's §4.2: three stages of 16, 32 and 64
filters, and shortcuts without parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.models.published import loaded


class BasicBlock(torch.nn.Module):
    """Two 3×3 convolutions; (N, C, H, W) -> (N, filters, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self,
        channels: int,
        filters: int,
        stride: int,
        downsample: torch.nn.Module | None,
        groups: int = 1,
        width_per_group: int = 64,
        *,
        nn: Any,
    ):
        super().__init__()
        if (groups, width_per_group) != (1, 64):
            raise ValueError(f"groups, width_per_group: expected 1 and 64 for basic blocks, got {groups} and {width_per_group}")
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(torch.nn.Module):
    """Convolutions of 1×1, 3×3 and 1×1; stride and groups are those of the 3×3. (N, C, H, W) -> (N, 4·filters, H/stride,
    W/stride)."""

    expansion = 4

    def __init__(
        self,
        channels: int,
        filters: int,
        stride: int,
        downsample: torch.nn.Module | None,
        groups: int = 1,
        width_per_group: int = 64,
        *,
        nn: Any,
    ):
        super().__init__()
        width = int(filters * (width_per_group / 64)) * groups
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * filters, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * filters)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


def _initialise(model: torch.nn.Module) -> None:
    """Draws the filters from a normal distribution whose variance preserves the scale of gradients (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet(torch.nn.Module):
    """(N, 3, 224, 224) -> (N, classes).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: the number of blocks in each of the four stages.
        num_classes: the number of classes.
        zero_init_residual: whether the scale of the last normalisation of each block starts at 0, so that at first the block
            only passes on its shortcut.
        groups, width_per_group: the groups of the 3×3 convolutions in bottlenecks, and the filters of each group in the first
            stage; with depths (3, 4, 6, 3), 32 and 4 yield ResNeXt-50 32×4d, 1 and 128 Wide ResNet-50-2.
        nn: the namespace of the modules.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, depth in enumerate(depths):
            blocks, filters = [], 64 << stage
            for index in range(depth):
                stride = 2 if stage and not index else 1
                wider = filters * block.expansion
                downsample = None
                if stride != 1 or channels != wider:
                    downsample = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
                blocks.append(block(channels, filters, stride, downsample, groups, width_per_group, nn=nn))
                channels = wider
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        _initialise(self)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                    torch.nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class CifarBlock(torch.nn.Module):
    """Two 3×3 convolutions. The shortcut, if there is one, subsamples the input and pads it with channels of zeros (the paper's
    option A)."""

    def __init__(self, channels: int, filters: int, stride: int, residual: bool, *, nn: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride, self.added_channels, self.residual = stride, filters - channels, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.residual:
            before = self.added_channels // 2
            shortcut = x[:, :, :: self.stride, :: self.stride]
            y = y + F.pad(shortcut, (0, 0, 0, 0, before, self.added_channels - before))
        return torch.relu(y)


class CifarResNet(torch.nn.Module):
    """(N, channels, 32, 32) -> (N, classes), with 6n + 2 layers, of which 6n are in blocks.

    Args:
        depth: 6n + 2, such as 20, 32, 44, 56 or 110.
        residual: whether blocks add their input to their output; plain networks differ in nothing else.
        num_classes: the number of classes.
        channels: the number of channels of the images.
        nn: the namespace of the modules.
    """

    def __init__(self, depth: int, residual: bool = True, num_classes: int = 10, channels: int = 3, *, nn: Any = unrolled):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: expected 6n + 2, such as 20 or 56, got {depth}")
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, width = [], 16
        for stage in range(3):
            for index in range((depth - 2) // 6):
                filters = 16 << stage
                blocks.append(CifarBlock(width, filters, 2 if stage and not index else 1, residual, nn=nn))
                width = filters
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.blocks(x).mean((2, 3)))


def resnet18(
    num_classes: int = 1000,
    zero_init_residual: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
    *,
    weights: Mapping[str, Any] | None = None,
    nn: Any = unrolled,
) -> ResNet:
    """ResNet-18 with basic blocks for 224×224 images; 11,689,512 parameters. `weights` is a state_dict to load, such as
    torchvision's."""
    return loaded(ResNet(BasicBlock, (2, 2, 2, 2), num_classes, zero_init_residual, groups, width_per_group, nn=nn), weights)


def resnet34(
    num_classes: int = 1000,
    zero_init_residual: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
    *,
    weights: Mapping[str, Any] | None = None,
    nn: Any = unrolled,
) -> ResNet:
    """ResNet-34 with basic blocks for 224×224 images; 21,797,672 parameters. `weights` is a state_dict to load, such as
    torchvision's."""
    return loaded(ResNet(BasicBlock, (3, 4, 6, 3), num_classes, zero_init_residual, groups, width_per_group, nn=nn), weights)


def resnet50(
    num_classes: int = 1000,
    zero_init_residual: bool = False,
    groups: int = 1,
    width_per_group: int = 64,
    *,
    weights: Mapping[str, Any] | None = None,
    nn: Any = unrolled,
) -> ResNet:
    """ResNet-50 with bottlenecks for 224×224 images; 25,557,032 parameters. `weights` is a state_dict to load, such as
    torchvision's."""
    return loaded(ResNet(Bottleneck, (3, 4, 6, 3), num_classes, zero_init_residual, groups, width_per_group, nn=nn), weights)


def cifar_resnet(
    depth: int, residual: bool = True, num_classes: int = 10, channels: int = 3, *, nn: Any = unrolled
) -> CifarResNet:
    """The networks of the paper for CIFAR, such as residual-20 or, with `residual=False`, plain-20."""
    return CifarResNet(depth, residual, num_classes, channels, nn=nn)
