"""The layers of a recurrent network, composed of differentiable operators: a product for all steps, then the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_unroll.autocast import lowered
from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.ops.linear import linear
from torch_unroll.ops.rnn import rnn_forward
from torch_unroll.ops.rnn_layer import one_direction
from torch_unroll.ops.rnn_steps import Steps

#: For each layer and each of its directions, the weights w_ih, w_hh and, if there are biases, b_ih, b_hh.
Layers = list[list[tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Stack:
    """The layers of one call, and how they are run."""

    layers: Layers
    batch_first: bool
    dropout: float
    nonlinearity: str
    engine: str

    def layer(self, x: Tensor, h0: Tensor, weights: list[tuple[Tensor, ...]], steps: Steps) -> tuple[Tensor, Tensor]:
        """Runs one layer on x, in the layout of the input, from h0 (D, N, H). Returns h, laid out like x, and h_n (D, N, H)."""
        w_ih, w_hh, *biases = zip(*weights, strict=True)
        w_ih, w_hh = tuple(map(lowered, w_ih)), tuple(map(lowered, w_hh))
        bias = joined([lowered(b_ih + b_hh) for b_ih, b_hh in zip(*biases, strict=True)]) if biases else None
        z = linear(x, joined(w_ih), bias, "rnn", self.engine)
        z = z.transpose(0, 1) if self.batch_first else z
        recurrent = w_hh[0].unsqueeze(0) if len(w_hh) == 1 else torch.stack(w_hh)
        h = rnn_forward(z, recurrent, h0, steps.lengths, steps.batch_sizes, self.nonlinearity, "rnn", self.engine)
        H = h0.shape[-1]
        h_n = [steps.last(one_direction(h, d, H), h0[d].to(h.dtype), d) for d in range(len(weights))]
        return h.transpose(0, 1) if self.batch_first else h, torch.stack(h_n)

    def dropped(self, x: Tensor) -> Tensor:
        """Applies dropout to x. As in torch, the mask is drawn for (T, N, ·) even if the batch comes first."""
        if not self.batch_first:
            return torch.dropout(x, self.dropout, True)
        ones = torch.ones_like(x.transpose(0, 1), memory_format=torch.contiguous_format)
        return x * torch.dropout(ones, self.dropout, True).transpose(0, 1)

    def run(self, x: Tensor, h0: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """Runs every layer, with dropout between them; returns the output and h_n."""
        last_states = []
        running = steps.running(x.transpose(0, 1) if self.batch_first else x)
        if (
            running is not None
        ):  # a NaN past a length would reach the weight's gradient although dz is 0 there, since 0 · NaN is NaN
            x = x.masked_fill(~(running.transpose(0, 1) if self.batch_first else running), 0)
        for number, (weights, start) in enumerate(zip(self.layers, h0.split(len(self.layers[0])), strict=True)):
            if number > 0 and self.dropout:
                x = self.dropped(x)
            x, h_n = self.layer(x, start, weights, steps)
            last_states.append(h_n)
        return x, joined(last_states)

    def run_in_segments(self, x: Tensor, h0: Tensor, lengths: Tensor | None, segments: int) -> tuple[Tensor, Tensor]:
        """`run`, but saves only the input and the states between segments of the sequence; backward computes the rest again."""
        axis = 1 if self.batch_first else 0
        parts = x.split(ceil_divide(x.shape[axis], segments), axis)
        outputs, state, begin = [], h0, 0
        for x in parts:
            steps = Steps(None if lengths is None else lengths - begin, None)
            h, state = checkpoint(self.run, x, state, steps, use_reentrant=False)
            outputs.append(h)
            begin += x.shape[axis]
        return torch.cat(outputs, axis), state


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the tensors one after the other along their first dimension, without a copy if there is only one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
