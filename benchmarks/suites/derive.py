"""The layers of a network: it runs once, while hooks on its modules record convolutions, max poolings and recurrences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.names import Shape
from benchmarks.ops.conv2d import WindowShape
from benchmarks.ops.max_pool2d import PoolShape
from benchmarks.ops.rnn import RnnShape
from torch_unroll.shapes import pair


@dataclass(frozen=True)
class Entry:
    """One shape of a suite, the directions that are measured, and the names of the layers that have this shape."""

    op: str
    shape: Any
    directions: tuple[str, ...]
    labels: tuple[str, ...] = ()


def _conv2d(module: nn.Conv2d, x: Tensor) -> Shape:
    N, C, H, W = x.shape
    return WindowShape(
        N=N,
        C=C,
        H=H,
        W=W,
        K=module.out_channels,
        R=module.kernel_size[0],
        S=module.kernel_size[1],
        stride=pair(module.stride, "stride"),
        padding=pair(module.padding, "padding"),  # "same" does not occur in these networks
        dilation=pair(module.dilation, "dilation"),
        groups=module.groups,
        bias=int(module.bias is not None),
    )


def _max_pool2d(module: nn.MaxPool2d, x: Tensor) -> Shape:
    N, C, H, W = x.shape
    return PoolShape(
        N=N,
        C=C,
        H=H,
        W=W,
        window=pair(module.kernel_size, "kernel_size"),
        stride=pair(module.stride, "stride"),
        padding=pair(module.padding, "padding"),
        dilation=pair(module.dilation, "dilation"),
        ceil_mode=int(module.ceil_mode),
    )


def _rnn(module: nn.RNN, x: Tensor) -> Shape:
    T, N, I = x.transpose(0, 1).shape if module.batch_first else x.shape  # noqa: E741
    return RnnShape(
        T=T,
        N=N,
        I=I,
        H=module.hidden_size,
        layers=module.num_layers,
        directions=2 if module.bidirectional else 1,
        nonlinearity=module.nonlinearity,
        bias=int(module.bias),
    )


_READERS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.Conv2d: ("conv2d", _conv2d),
    nn.MaxPool2d: ("max_pool2d", _max_pool2d),
    nn.RNN: ("rnn", _rnn),
}


def layers(model: nn.Module, x: Tensor) -> list[Entry]:
    """The shapes of the Conv2d, MaxPool2d and RNN modules that `model(x)` runs, each once, with the names of its layers.

    A convolution that reads `x` itself needs no input gradient in training, so its shape has an entry of its own without dgrad.
    """
    by_shape: dict[tuple[str, Any, bool], list[str]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], name: str, op: str, reader: Any) -> None:
        key = (op, reader(module, inputs[0]), inputs[0] is x)
        by_shape.setdefault(key, []).append(name)

    handles = []
    for name, module in model.named_modules():
        for kind, (op, reader) in _READERS.items():
            if isinstance(module, kind):
                handles.append(
                    module.register_forward_pre_hook(
                        lambda module, inputs, name=name, op=op, reader=reader: record(module, inputs, name, op, reader)
                    )
                )
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [Entry(op, shape, _directions(op, first), tuple(labels)) for (op, shape, first), labels in by_shape.items()]


def _directions(op: str, first: bool) -> tuple[str, ...]:
    if op == "conv2d":
        return ("fprop", "wgrad") if first else ("fprop", "dgrad", "wgrad")
    return ("fprop", "dgrad") if op == "max_pool2d" else ("fprop", "train")
