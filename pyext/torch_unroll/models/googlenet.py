"""GoogLeNet (Szegedy et al. 2014) with batch normalisation; its Inception modules apply filters of several sizes side by side.

The names, shapes and outputs are torchvision's, as are most keywords and the 3×3 filters of the "5×5" branch, so that
torchvision's weights can be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.models.published import loaded


class BasicConv2d(torch.nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, channels: int, filters: int, *, nn: Any, **geometry: Any):
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, bias=False, **geometry)
        self.bn = nn.BatchNorm2d(filters, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Inception(torch.nn.Module):
    """(N, C, H, W) -> (N, one + three + five + pool, H, W): branches of 1×1, 3×3 and "5×5" convolutions and of pooling, each with
    a 1×1 convolution of its own."""

    def __init__(
        self, channels: int, one: int, reduce_three: int, three: int, reduce_five: int, five: int, pool: int, *, nn: Any
    ):
        super().__init__()
        self.branch1 = BasicConv2d(channels, one, kernel_size=1, nn=nn)
        self.branch2 = nn.Sequential(
            BasicConv2d(channels, reduce_three, kernel_size=1, nn=nn),
            BasicConv2d(reduce_three, three, kernel_size=3, padding=1, nn=nn),
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(channels, reduce_five, kernel_size=1, nn=nn),
            BasicConv2d(reduce_five, five, kernel_size=3, padding=1, nn=nn),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), BasicConv2d(channels, pool, kernel_size=1, nn=nn)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(torch.nn.Module):
    """An auxiliary classifier in the middle of the network, whose loss reaches the lower layers on a shorter path."""

    def __init__(self, channels: int, num_classes: int, dropout: float, *, nn: Any):
        super().__init__()
        self.conv = BasicConv2d(channels, 128, kernel_size=1, nn=nn)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.nn.functional.adaptive_avg_pool2d(x, (4, 4)))
        return self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))


# name -> channels of the input, and of 1×1, 3×3 reduction, 3×3, 5×5 reduction, 5×5, pool projection
_INCEPTIONS = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}


#: The mean and standard deviation of red, green and blue on ImageNet.
_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


class GoogLeNetOutputs(NamedTuple):
    """The outputs of GoogLeNet in training with auxiliary heads, each (N, classes)."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class GoogLeNet(torch.nn.Module):
    """(N, 3, 224, 224) -> (N, classes), or `GoogLeNetOutputs` in training with heads; 6,624,904 parameters without them.

    Args:
        num_classes: the number of classes.
        aux_logits: whether the network has the two auxiliary classifiers; in torchvision's class, the default is True.
        transform_input: whether images that are normalised by ImageNet's means and deviations are rescaled to [-1, 1], on which
            torchvision's weights were trained.
        init_weights: whether the weights of convolutions and linear layers are drawn from a normal distribution with deviation
            0.01, truncated at ±2, instead of torch's distribution.
        dropout, dropout_aux: the probabilities of dropout before the classifier and in the auxiliary heads.
        nn: the namespace of the modules.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = False,
        transform_input: bool = False,
        init_weights: bool = False,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        self.aux_logits, self.transform_input = aux_logits, transform_input
        self.conv1 = BasicConv2d(3, 64, kernel_size=7, stride=2, padding=3, nn=nn)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, kernel_size=1, nn=nn)
        self.conv3 = BasicConv2d(64, 192, kernel_size=3, padding=1, nn=nn)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for name, widths in _INCEPTIONS.items():
            setattr(self, name, Inception(*widths, nn=nn))
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.aux1 = AuxiliaryHead(512, num_classes, dropout_aux, nn=nn) if aux_logits else None
        self.aux2 = AuxiliaryHead(528, num_classes, dropout_aux, nn=nn) if aux_logits else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        if init_weights:
            for module in self.modules():
                if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                    torch.nn.init.trunc_normal_(module.weight, std=0.01)

    def _inceptions(self, suffixes: str, x: Tensor) -> Tensor:
        for suffix in suffixes.split():
            x = self.get_submodule(f"inception{suffix}")(x)
        return x

    def forward(self, x: Tensor) -> Any:
        if self.transform_input:
            moments = enumerate(_IMAGENET)
            x = torch.cat([x[:, i : i + 1] * (deviation / 0.5) + (mean - 0.5) / 0.5 for i, (mean, deviation) in moments], 1)
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self._inceptions("4a", self.maxpool3(self._inceptions("3a 3b", x)))
        lower = self.aux1(x) if self.aux1 is not None and self.training else None
        x = self._inceptions("4b 4c 4d", x)
        upper = self.aux2(x) if self.aux2 is not None and self.training else None
        x = self._inceptions("5a 5b", self.maxpool4(self._inceptions("4e", x)))
        logits = self.fc(self.dropout(x.mean((2, 3))))
        return logits if lower is None or upper is None else GoogLeNetOutputs(logits, upper, lower)


def googlenet(
    num_classes: int = 1000,
    aux_logits: bool = False,
    transform_input: bool = False,
    init_weights: bool = False,
    dropout: float = 0.2,
    dropout_aux: float = 0.7,
    *,
    weights: Mapping[str, Any] | None = None,
    nn: Any = unrolled,
) -> GoogLeNet:
    """GoogLeNet for 224×224 images.

    Args beyond those of the class: `weights`, a state_dict to load, such as torchvision's. Without `aux_logits`, entries of
    `weights` for the auxiliary heads are ignored; `load_state_dict` would reject them.
    """
    network = GoogLeNet(num_classes, aux_logits, transform_input, init_weights, dropout, dropout_aux, nn=nn)
    return loaded(network, weights, "" if aux_logits else "aux")
