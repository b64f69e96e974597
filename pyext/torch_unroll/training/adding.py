"""The adding problem (Hochreiter & Schmidhuber 1997): two of T numbers are marked, one in each half, and the answer is their sum.

Always answering 1 has a squared error of 1/6. A ReLU network whose recurrence starts as the identity learns the task on sequences
of increasing length.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.models import RecurrentNet, identity_initialise

LENGTHS = (10, 20, 40, 70, 100)
SOLVED = 0.006  # the running mean of the squared error at which training goes on to the next length


def draw(steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Draws x (T, N, 2), the numbers and their marks, and the sums (N)."""
    numbers, marks, rows = torch.rand(steps, batch), torch.zeros(steps, batch), torch.arange(batch)
    marks[torch.randint(steps // 2, (batch,)), rows] = 1
    marks[torch.randint(steps // 2, steps, (batch,)), rows] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(0)


def train(hidden_size: int = 64, batch: int = 32, most_steps: int = 6000) -> Iterator[tuple[int, float, RecurrentNet]]:
    """Trains on each length until its running squared error is at most `SOLVED`, for at most `most_steps` optimizer steps in
    all. Yields the length, that error and the network after each length."""
    net = RecurrentNet(2, hidden_size, 1, nonlinearity="relu")
    identity_initialise(net.rnn)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    step = 0
    for length in LENGTHS:
        running = 1.0
        while running > SOLVED and step < most_steps:
            x, d = draw(length, batch)
            loss = F.mse_loss(net(x)[0][-1, :, 0], d)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            running += 0.03 * (float(loss.detach()) - running)
            step += 1
        yield length, running, net
