"""Recurrent nets of the lecture: hidden and output layers with their own nonlinearities, stacked and bidirectional, for a label
per step or per sequence; truncated BPTT, and streaming with carried state.

    h_t = σ₁(W⁽¹⁾ x_t + W⁽¹¹⁾ h_{t−1} + b⁽¹⁾),   y_t = σ₂(W⁽²⁾ h_t + b⁽²⁾)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.max_pool2d import max_over_time

_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda y: y,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


class RecurrentNet(torch.nn.Module):
    """x (T, N, I) -> y (T, N, O) and the last hidden states (layers·directions, N, H).

    Args:
        input_size, hidden_size, output_size: I, H, O.
        num_layers: K, the depth of the stack.
        bidirectional: whether a second recurrence walks from the end; y_t then sees h_t of both.
        nonlinearity, output_nonlinearity: σ₁ and σ₂; σ₁ of torch.nn.RNN's, or with torch_unroll.nn also "sigmoid" and "identity".
        nn: the namespace of the modules.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        output_nonlinearity: str = "identity",
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        if output_nonlinearity not in _OUTPUTS:
            raise ValueError(f"output_nonlinearity: expected one of {', '.join(_OUTPUTS)}, got {output_nonlinearity!r}")
        self.rnn = nn.RNN(input_size, hidden_size, num_layers, nonlinearity=nonlinearity, bidirectional=bidirectional)
        self.output = nn.Linear(hidden_size * (2 if bidirectional else 1), output_size)
        self.output_nonlinearity = output_nonlinearity

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One call over T steps from state h; calling on pieces with the state carried over is streaming."""
        hidden, h = self.rnn(x, h)
        return _OUTPUTS[self.output_nonlinearity](self.output(hidden)), h


class SequenceClassifier(torch.nn.Module):
    """x (T, N, I) -> scores (N, classes): the maximum over time of each class's score, for cross-entropy.

    Args:
        as RecurrentNet's, with the number of classes as its output size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        nonlinearity: str = "tanh",
        output_nonlinearity: str = "identity",
        *,
        nn: Any = unrolled,
    ):
        super().__init__()
        options = (num_layers, bidirectional, nonlinearity, output_nonlinearity)
        self.net = RecurrentNet(input_size, hidden_size, num_classes, *options, nn=nn)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`lengths` (N,): the steps of each sequence that count; the rest is padding."""
        return max_over_time(self.net(x)[0], lengths)


def per_step_loss(y: Tensor, d: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """L = Σ_t ℓ(y_t, d_t): y (T, N, O), d (T, N) or (T, N, O), ℓ a mean over its rows."""
    return loss(y.flatten(0, 1), d.flatten(0, 1)) * len(y)


def truncated_bptt(
    net: RecurrentNet, x: Tensor, d: Tensor, segment: int, loss: Callable[[Tensor, Tensor], Tensor], h: Tensor | None = None
) -> Iterator[Tensor]:
    """Back-propagation through at most `segment` steps (Williams & Peng 1990): yields the loss of each segment in turn.

    The state is carried from segment to segment, its gradient is not. Call `backward` on each loss before asking for the next.
    """
    for start in range(0, len(x), segment):
        y, h = net(x[start : start + segment], None if h is None else h.detach())
        yield per_step_loss(y, d[start : start + segment], loss)


def identity_initialise(rnn: torch.nn.Module) -> None:
    """Makes a ReLU recurrence begin by remembering: W_hh the identity, biases zero, small W_ih (Le, Jaitly & Hinton 2015)."""
    for name, parameter in rnn.named_parameters():
        if name.startswith("weight_hh"):
            torch.nn.init.eye_(parameter)
        elif name.startswith("bias"):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.001)
