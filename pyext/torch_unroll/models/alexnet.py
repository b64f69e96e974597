"""AlexNet (Krizhevsky, Sutskever & Hinton 2012) and its ablations (Fergus's CIFAR tutorial of 2016)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.models.published import loaded

REMOVABLE = ("conv3", "conv4", "fc6", "fc7")

# name in the paper -> (name in the Sequential, which is torchvision's index; K; R; stride; padding; groups; whether pooling
# follows)
_FORMS = {
    "torchvision": {
        "conv1": ("0", 64, 11, 4, 2, 1, True),
        "conv2": ("3", 192, 5, 1, 2, 1, True),
        "conv3": ("6", 384, 3, 1, 1, 1, False),
        "conv4": ("8", 256, 3, 1, 1, 1, False),
        "conv5": ("10", 256, 3, 1, 1, 1, True),
    },
    "grouped": {
        "conv1": ("0", 96, 11, 4, 2, 1, True),
        "conv2": ("3", 256, 5, 1, 2, 2, True),
        "conv3": ("6", 384, 3, 1, 1, 1, False),
        "conv4": ("8", 384, 3, 1, 1, 2, False),
        "conv5": ("10", 256, 3, 1, 1, 2, True),
    },
}


class AlexNet(torch.nn.Module):
    """(N, 3, 224, 224) -> (N, classes).

    Args:
        num_classes: the number of classes.
        form: "grouped" is the form of the paper, with two groups and local response normalisation (60,965,224 parameters);
            "torchvision" is the one-GPU form of Krizhevsky 2014, whose weights torchvision publishes (61,100,840 parameters).
        without: the layers to omit, out of conv3, conv4, fc6 and fc7.
        dropout: the probability of dropout before each hidden fully connected layer.
        nn: the namespace of the modules.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        form: str = "torchvision",
        without: Iterable[str] = (),
        dropout: float = 0.5,
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        omitted = set(without)
        if form not in _FORMS:
            raise ValueError(f"form: expected one of {', '.join(_FORMS)}, got {form!r}")
        if not omitted <= set(REMOVABLE):
            raise ValueError(f"without: expected layers of {', '.join(REMOVABLE)}, got {', '.join(sorted(omitted))}")
        self.features = self._features(form, omitted, nn)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
        width = 256 * 6 * 6
        for name, index in (("fc6", 1), ("fc7", 4)):  # torchvision's indices, which do not depend on omitted layers
            if name not in omitted:
                layers[str(index - 1)] = nn.Dropout(dropout)
                layers[str(index)] = nn.Linear(width, 4096)
                layers[str(index + 1)] = nn.ReLU(inplace=True)
                width = 4096
        layers["6"] = nn.Linear(width, num_classes)
        self.classifier = nn.Sequential(layers)

    @staticmethod
    def _features(form: str, omitted: set[str], nn: Any) -> torch.nn.Sequential:
        layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
        channels = 3
        for name, (index, filters, extent, stride, padding, groups, pooled) in _FORMS[form].items():
            if name in omitted:
                continue
            layers[index] = nn.Conv2d(channels, filters, extent, stride, padding, groups=groups)
            layers[str(int(index) + 1)] = nn.ReLU(inplace=True)
            if form == "grouped" and name in ("conv1", "conv2"):
                layers[f"{index}_norm"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
            if pooled:
                layers[str(int(index) + 2)] = nn.MaxPool2d(3, stride=2)  # windows overlap
            channels = filters
        return nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(
    num_classes: int = 1000,
    form: str = "torchvision",
    without: Iterable[str] = (),
    dropout: float = 0.5,
    *,
    weights: Mapping[str, Any] | None = None,
    nn: Any = unrolled,
) -> AlexNet:
    """AlexNet for 224×224 images; the layers `without` are omitted. `weights` is a state_dict to load, such as torchvision's."""
    return loaded(AlexNet(num_classes, form, without, dropout, nn=nn), weights)
