"""`python -m torch_unroll params`: the number of parameters of the lecture's layers and networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import nn

from torch_unroll import models
from torch_unroll.nn import LocallyConnected2d

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LeNet-5": models.lenet5,
    "AlexNet, two groups": lambda: models.alexnet(form="grouped"),
    "AlexNet, torchvision's": models.alexnet,
    "GoogLeNet": models.googlenet,
    "ResNet-18": models.resnet18,
    "ResNet-34": models.resnet34,
    "ResNet-50": models.resnet50,
    "residual-20 (CIFAR)": lambda: models.cifar_resnet(20),
    "residual-56 (CIFAR)": lambda: models.cifar_resnet(56),
    "DenseNet-121": models.densenet121,
    "DenseNet-BC-100-12": models.densenet_bc_100_12,
}
#: The layers omitted from AlexNet -> the number of parameters that this removes, in millions, according to the lecture; empty if
#: the lecture states none.
ABLATIONS = {
    ("fc7",): "≈ 16",
    ("fc6", "fc7"): "≈ 50",
    ("conv3", "conv4"): "≈ 1",
    ("conv3", "conv4", "fc6", "fc7"): "",
}


def count(make: Callable[[], nn.Module]) -> int:
    """The number of parameters of a module, which is created on the meta device so that it takes no memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def connections(extent: int = 200, units: int = 400_000, field: int = 10) -> dict[str, int]:
    """The number of weights, without biases, between an extent×extent image and hidden units that each see the whole image or a
    field×field part of it.

    The convolution has one filter for each map of extent×extent units, and all units of the map share it.
    """
    maps = units // (extent * extent)

    def local(filters: int) -> nn.Module:
        return LocallyConnected2d(
            1, filters, extent + field - 1, field, bias=False
        )  # the image is padded, so that every pixel has units

    return {
        "fully connected": count(lambda: nn.Linear(extent * extent, units, bias=False)),
        f"locally connected, {field}×{field} fields": count(lambda: local(maps)),
        f"convolution, {maps} filters of {field}×{field}": count(lambda: nn.Conv2d(1, maps, field, bias=False)),
    }


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"  {row[0]:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join([title, *lines])


def main(arguments: Sequence[str]) -> int:
    """Runs the command, which prints three tables."""
    parser = argparse.ArgumentParser(prog="python -m torch_unroll params", description=__doc__)
    parser.add_argument("--extent", type=int, default=200, help="height and width of the image (default: 200)")
    parser.add_argument("--units", type=int, default=400_000, help="hidden units (default: 400,000)")
    parser.add_argument("--field", type=int, default=10, help="height and width of a unit's field (default: 10)")
    options = parser.parse_args(arguments)
    if min(options.extent, options.units, options.field) < 1 or options.units < options.extent**2:
        parser.error("expected numbers of 1 or more, and at least one unit for each pixel")
    sizes = connections(options.extent, options.units, options.field)
    title = f"{options.extent}×{options.extent} image, {options.units:,} hidden units: weights"
    print(_table(title, [(name, f"{number:,}") for name, number in sizes.items()]), end="\n\n")
    print(_table("Networks: parameters", [(name, f"{count(make):,}") for name, make in NETWORKS.items()]), end="\n\n")
    whole = count(NETWORKS["AlexNet, two groups"])
    rows = [("without", "parameters", "removed, millions", "the lecture")]
    for without, lecture in ABLATIONS.items():
        left = count(lambda without=without: models.alexnet(form="grouped", without=without))  # type: ignore[misc]
        rows.append((", ".join(without), f"{left:,}", f"{(whole - left) / 1e6:.1f}", lecture))
    print(_table(f"AlexNet's ablations, of {whole:,}", rows))
    return 0
