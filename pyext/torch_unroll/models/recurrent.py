"""The recurrent networks of the lecture: hidden and output layers with separate nonlinearities, stacked and bidirectional, with a
label for each step or each sequence; truncated BPTT, and streaming with a state that is carried over.

    h_t = σ₁(W⁽¹⁾ x_t + W⁽¹¹⁾ h_{t−1} + b⁽¹⁾),   y_t = σ₂(W⁽²⁾ h_t + b⁽²⁾)

At step t, x_t is the input, h_t the hidden state and y_t the output; σ₁ and σ₂ are the nonlinearities.
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
        num_layers: the depth of the stack.
        bidirectional: whether a second recurrence runs from the last step to the first; y_t then depends on h_t of both.
        nonlinearity: σ₁, "tanh" or "relu", and with torch_unroll.nn also "sigmoid" or "identity".
        output_nonlinearity: σ₂, "identity", "tanh", "relu" or "sigmoid".
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
        """Computes T steps from state h. To stream a sequence, pass its parts one after the other, each with the state that the
        part before it returned."""
        hidden, h = self.rnn(x, h)
        return _OUTPUTS[self.output_nonlinearity](self.output(hidden)), h


class SequenceClassifier(torch.nn.Module):
    """x (T, N, I) -> scores (N, classes): the maximum over time of the score of each class, for cross-entropy.

    The arguments are those of `RecurrentNet`, with `num_classes` in place of `output_size`.
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
        """`lengths` (N) is the number of steps of each sequence that count; the rest is padding."""
        return max_over_time(self.net(x)[0], lengths)


def per_step_loss(y: Tensor, d: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """L = Σ_t ℓ(y_t, d_t) for y (T, N, O) and d (T, N) or (T, N, O), where ℓ is `loss`, a mean over its rows."""
    return loss(y.flatten(0, 1), d.flatten(0, 1)) * len(y)


def truncated_bptt(
    net: RecurrentNet, x: Tensor, d: Tensor, segment: int, loss: Callable[[Tensor, Tensor], Tensor], h: Tensor | None = None
) -> Iterator[Tensor]:
    """Back-propagation through at most `segment` steps (Williams & Peng 1990); yields the loss of each segment in turn.

    The state is carried from segment to segment, but not its gradient. Call `backward` on each loss before
    requesting the next, so that only one segment's activations are kept.
    """
    for start in range(0, len(x), segment):
        y, h = net(x[start : start + segment], None if h is None else h.detach())
        yield per_step_loss(y, d[start : start + segment], loss)


def identity_initialise(rnn: torch.nn.Module) -> None:
    """Initialises a ReLU recurrence so that it keeps its state (Le, Jaitly & Hinton 2015): W_hh is the identity, W_ih is small,
    and biases are zero."""
    for name, parameter in rnn.named_parameters():
        if name.startswith("weight_hh"):
            torch.nn.init.eye_(parameter)
        elif name.startswith("bias"):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.001)
