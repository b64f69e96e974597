"""Elman recurrences over whole sequences, and a single step of one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Operation
from benchmarks.names import Shape
from benchmarks.ops.conv2d import shrink_channels
from benchmarks.providers import is_engine


@dataclass(frozen=True)
class RnnShape(Shape):
    """T steps of N sequences with I input features and H hidden units."""

    T: int
    N: int
    I: int  # noqa: E741 (the usual letter for the input size)
    H: int
    layers: int = 1
    directions: int = 1
    nonlinearity: str = "tanh"
    bias: int = 1


class Rnn(Operation):
    """The whole of nn.RNN, including the product with the input and the biases.

    On a GPU the weights lie in one buffer, as `flatten_parameters()` arranges them for cuDNN.
    """

    name = "rnn"
    Shape = RnnShape
    layouts = ("nchw",)
    baselines = ("eager",)  # torch.compile runs nn.RNN in eager mode
    precision = "rnn"
    ours_import = "from torch_unroll.rnn import rnn"
    torch_import = ""

    def sizes(self, shape: RnnShape) -> dict[str, tuple[int, ...]]:
        D, H = shape.directions, shape.H
        sizes: dict[str, tuple[int, ...]] = {"x": (shape.T, shape.N, shape.I), "h0": (shape.layers * D, shape.N, H)}
        for layer in range(shape.layers):
            for suffix in ("", "_reverse")[:D]:
                sizes[f"w_ih_l{layer}{suffix}"] = (H, D * H if layer else shape.I)
                sizes[f"w_hh_l{layer}{suffix}"] = (H, H)
                if shape.bias:
                    sizes[f"b_ih_l{layer}{suffix}"] = sizes[f"b_hh_l{layer}{suffix}"] = (H,)
        return sizes

    def output(self, shape: RnnShape) -> tuple[int, ...]:
        return (shape.T, shape.N, shape.directions * shape.H)

    def expression(self, shape: RnnShape, direction: str, provider: str) -> str:
        weights = f"[{', '.join(list(self.sizes(shape))[2:])}]"
        two = shape.directions == 2
        if is_engine(provider):
            options = f"nonlinearity={shape.nonlinearity!r}, num_layers={shape.layers}, bidirectional={two}, engine={provider!r}"
            return f"rnn(x, h0, {weights}, {options})[0]"
        options = f"{bool(shape.bias)}, {shape.layers}, 0.0, {direction == 'train'}, {two}, False"
        return f"torch.rnn_{shape.nonlinearity}(x, h0, {weights}, {options})[0]"

    def tensors(self, case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
        tensors = super().tensors(case, device, seed)
        if device.type != "cuda":
            return tensors
        shape = case.shape
        module = torch.nn.RNN(
            shape.I, shape.H, shape.layers, shape.nonlinearity, bool(shape.bias), bidirectional=shape.directions == 2
        ).to(device, case.torch_dtype)
        module.flatten_parameters()
        with torch.no_grad():
            for name, parameter in zip(list(self.sizes(shape))[2:], module.parameters(), strict=True):
                tensors[name] = parameter.copy_(tensors[name]).detach()
        return tensors

    def flops(self, shape: RnnShape, direction: str) -> int:
        """Counts the products with the input and with the state. For each, the backward pass computes two: one for the gradient
        of the input or state, and one for that of the weight."""
        weights = sum(math.prod(size) for name, size in self.sizes(shape).items() if name.startswith("w"))
        return 2 * shape.T * shape.N * weights * (3 if direction == "train" else 1)

    def shrink(self, shape: RnnShape) -> RnnShape:
        return replace(
            shape,
            T=min(shape.T, 4),
            N=min(shape.N, 3),
            I=shrink_channels(shape.I, 8),
            H=shrink_channels(shape.H),
            layers=min(shape.layers, 2),
        )


@dataclass(frozen=True)
class CellShape(Shape):
    """One step of N sequences with I input features and H hidden units."""

    N: int
    I: int  # noqa: E741
    H: int
    nonlinearity: str = "tanh"


class RnnCell(Operation):
    """One step of a recurrence, with biases."""

    name = "rnn_cell"
    Shape = CellShape
    layouts = ("nchw",)
    precision = "rnn"
    ours_import = "from torch_unroll.rnn import rnn_cell"
    torch_import = ""

    def sizes(self, shape: CellShape) -> dict[str, tuple[int, ...]]:
        N, I, H = shape.N, shape.I, shape.H  # noqa: E741
        return {"x": (N, I), "h": (N, H), "w_ih": (H, I), "w_hh": (H, H), "b_ih": (H,), "b_hh": (H,)}

    def output(self, shape: CellShape) -> tuple[int, ...]:
        return (shape.N, shape.H)

    def expression(self, shape: CellShape, direction: str, provider: str) -> str:
        if is_engine(provider):
            return f"rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity={shape.nonlinearity!r}, engine={provider!r})"
        return f"torch.rnn_{shape.nonlinearity}_cell(x, h, w_ih, w_hh, b_ih, b_hh)"

    def flops(self, shape: CellShape, direction: str) -> int:
        return 2 * shape.N * shape.H * (shape.I + shape.H) * (3 if direction == "train" else 1)

    def shrink(self, shape: CellShape) -> Any:
        return replace(shape, N=min(shape.N, 3), I=shrink_channels(shape.I, 8), H=shrink_channels(shape.H))
