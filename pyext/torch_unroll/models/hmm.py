"""A hidden Markov model, whose exact predictions are the best that a recurrent network can learn to make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class HiddenMarkovModel:
    """A chain of hidden states h_t ~ transition[h_{t−1}] that emits the symbols x_t ~ emission[h_t].

    There are S states and X symbols. The rows of transition (S, S) and emission (S, X) sum to 1; initial (S) is the distribution
    of the first state.
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor

    def sample(self, steps: int, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws observations (T, N), int64."""
        state = torch.multinomial(self.initial.expand(batch, -1), 1, generator=generator)[:, 0]
        observations = []
        for _ in range(steps):
            observations.append(torch.multinomial(self.emission[state], 1, generator=generator)[:, 0])
            state = torch.multinomial(self.transition[state], 1, generator=generator)[:, 0]
        return torch.stack(observations)

    def predict(self, x: Tensor) -> Tensor:
        """The forward algorithm (Rabiner 1989, §III.A): (T, N) -> (T, N, X), the probabilities of x_t given x_0 … x_{t−1}."""
        belief = self.initial.expand(x.shape[1], -1)
        predictions = []
        for observed in x:
            predictions.append(belief @ self.emission)
            belief = belief * self.emission[:, observed].T
            belief = (belief / belief.sum(1, keepdim=True)) @ self.transition
        return torch.stack(predictions)

    def log_loss(self, x: Tensor) -> Tensor:
        """The mean of −log p(x_t | x_0 … x_{t−1}) in nats; on average, no predictor has a lower loss."""
        return -self.predict(x).gather(2, x[..., None]).log().mean()
