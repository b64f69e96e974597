"""Small calls of `rnn` with various extents and options, and torch's result for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torch_unroll.rnn import rnn

_TORCHS = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}


@dataclass(frozen=True)
class Case:
    """The extents and options of one call of `rnn`; `run` makes the call."""

    name: str
    T: int = 3
    N: int = 2
    inputs: int = 3  # I
    H: int = 4
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    nonlinearity: str = "tanh"
    batch_sizes: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def states(self) -> int:
        """The number of states in h0 and h_n: one for each layer and direction."""
        return self.num_layers * (2 if self.bidirectional else 1)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of input, h0 and the weights."""
        if self.batch_sizes is not None:
            input: tuple[int, ...] = (sum(self.batch_sizes), self.inputs)
        else:
            input = (self.N, self.T, self.inputs) if self.batch_first else (self.T, self.N, self.inputs)
        shapes = [input, (self.states, self.N, self.H)]
        width = self.inputs
        for _ in range(self.num_layers):
            for _ in range(self.states // self.num_layers):
                shapes += [(self.H, width), (self.H, self.H), *([(self.H,), (self.H,)] if self.bias else [])]
            width = self.H * (self.states // self.num_layers)
        return shapes

    def tensors(self, device: torch.device, dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
        """Input, h0 and weights: random numbers in [-0.5, 0.5), so small that tanh does not saturate."""
        tensors = (torch.rand(shape, dtype=torch.float64) - 0.5 for shape in self.shapes())
        return [tensor.to(device, dtype).requires_grad_(grad) for tensor in tensors]

    def _layout(self, device: torch.device) -> dict[str, Any]:
        sizes = None if self.batch_sizes is None else torch.tensor(self.batch_sizes)
        lengths = None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.int64, device=device)
        return {"batch_sizes": sizes, "lengths": lengths}

    def run(self, input: Tensor, h0: Tensor, *weights: Tensor, engine: str | None = None) -> tuple[Tensor, Tensor]:
        """Makes the call with torch_unroll."""
        return rnn(
            input,
            h0,
            weights,
            nonlinearity=self.nonlinearity,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            engine=engine,
            **self._layout(input.device),
            **self.options,
        )

    def torchs(self, input: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """Makes the call with torch's own operator, one sample at a time if the call has `lengths`, or packed input under
        torch.func, since torch's operator supports neither."""
        settings = (list(weights), self.bias, self.num_layers, 0.0, False, self.bidirectional)
        function = _TORCHS[self.nonlinearity]
        if self.batch_sizes is not None:
            if not torch._C._are_functorch_transforms_active():
                return function(input, torch.tensor(self.batch_sizes), h0, *settings)
            return self._packed_one_by_one(input, h0, *weights)
        if self.lengths is None:
            return function(input, h0, *settings, self.batch_first)
        x = input.transpose(0, 1) if self.batch_first else input
        width = self.H * (self.states // self.num_layers)
        outputs, states = [], []
        for n, length in enumerate(min(max(length, 0), self.T) for length in self.lengths):
            own, state = x[:length, n : n + 1], h0[:, n : n + 1]
            output, last = function(own, state, *settings, False) if length else (x.new_zeros(0, 1, width), state)
            outputs.append(torch.cat((output, output.new_zeros(self.T - length, 1, width))))
            states.append(last)
        output = torch.cat(outputs, 1)
        return output.transpose(0, 1) if self.batch_first else output, torch.cat(states, 1)

    def _packed_one_by_one(self, input: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """Makes a packed call as one with `lengths`: rows are scattered into (T, N), and the outputs gathered again."""
        sizes = self.batch_sizes or ()
        T, N = len(sizes), sizes[0]
        rows = torch.tensor([t * N + n for t, size in enumerate(sizes) for n in range(size)], device=input.device)
        padded = input.new_zeros(T * N, input.shape[1]).index_copy(0, rows, input).unflatten(0, (T, N))
        lengths = tuple(sum(size > n for size in sizes) for n in range(N))
        output, h_n = replace(self, T=T, batch_sizes=None, lengths=lengths).torchs(padded, h0, *weights)
        return output.flatten(0, 1).index_select(0, rows), h_n


CASES = (
    Case("plain"),
    Case("relu-without-bias", nonlinearity="relu", bias=False),
    Case("two-layers", num_layers=2),
    Case("bidirectional", bidirectional=True, num_layers=2, H=3),
    Case("batch-first", batch_first=True, bidirectional=True),
    Case("packed", batch_sizes=(3, 2, 2, 1), N=3),
    Case("packed-bidirectional", batch_sizes=(3, 3, 1), N=3, bidirectional=True, num_layers=2),
    Case("lengths", lengths=(2, 0, 3, 9, -1), N=5),
    Case("lengths-bidirectional", lengths=(1, 3, 0), N=3, bidirectional=True, num_layers=2, batch_first=True),
    Case("recomputed", T=5, num_layers=2, options={"recompute_segments": 2}),
    Case("recomputed-lengths", T=5, N=3, lengths=(5, 2, 0), options={"recompute_segments": 3}),
)
