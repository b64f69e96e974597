"""A convolutional and a recurrent network that learn handwritten digits.

The data are the 1,797 digits of 8×8 pixels that scikit-learn contains: the test set of the UCI "Optical Recognition of
Handwritten Digits" (Alpaydin & Kaynak 1998). A fixed seed selects a third of them to be held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll.nn as unrolled
from torch_unroll.max_pool2d import max_over_time
from torch_unroll.models import lenet5


@dataclass(frozen=True)
class Digits:
    """Images (N, 8, 8) with pixels in [0, 1] and their digits (N), for training and held out."""

    images: Tensor
    digits: Tensor
    held_out_images: Tensor
    held_out_digits: Tensor


def load() -> Digits:
    """Loads the digits. Raises ImportError with the remedy if scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    dataset = load_digits()
    images = torch.from_numpy(dataset.images).float() / 16
    digits = torch.from_numpy(dataset.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // 3], order[len(order) // 3 :]
    return Digits(images[rest], digits[rest], images[held_out], digits[held_out])


class RowReader(torch.nn.Module):
    """Reads images (N, 8, 8) row by row with an Elman network that computes logits at every row; the result is the maximum of
    each digit's logits over the rows.

    Args:
        hidden_size: the size of the recurrent state.
        nn: the namespace of the modules: `torch_unroll.nn` or `torch.nn`.
    """

    def __init__(self, hidden_size: int = 64, *, nn: Any = unrolled):
        super().__init__()
        self.rnn = nn.RNN(8, hidden_size)
        self.logits = nn.Linear(hidden_size, 10)

    def forward(self, images: Tensor) -> Tensor:
        h, _ = self.rnn(images.transpose(0, 1))
        return max_over_time(self.logits(h))


class Convolutional(torch.nn.Module):
    """LeNet-5 on the digits, enlarged to the 32×32 pixels for which it was designed."""

    def __init__(self, *, nn: Any = unrolled):
        super().__init__()
        self.network = lenet5(nn=nn)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(F.interpolate(images.unsqueeze(1), size=(32, 32), mode="bilinear", align_corners=False))


@dataclass(frozen=True)
class Recipe:
    """A network and its training: SGD with momentum on the cross-entropy, with a rate that falls linearly to a twentieth."""

    network: Callable[[], torch.nn.Module]
    rate: float
    epochs: int
    batch: int
    #: The lowest held-out accuracy that training should reach.
    expected: float
    momentum: float = 0.9


RECIPES = {
    "LeNet-5": Recipe(Convolutional, rate=0.02, epochs=20, batch=16, expected=0.975),
    "row reader": Recipe(RowReader, rate=0.05, epochs=20, batch=32, expected=0.90),
}


class Training:
    """The training of a network, epoch by epoch. The seed determines the initial weights and the order of the digits."""

    def __init__(self, recipe: Recipe, data: Digits, device: torch.device | str = "cpu", seed: int = 0):
        torch.manual_seed(seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.network = recipe.network().to(device)
        self.data = Digits(*(tensor.to(device) for tensor in vars(data).values()))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=recipe.rate, momentum=recipe.momentum)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.05, recipe.epochs)
        self.generator = torch.Generator().manual_seed(seed)

    def steps(self) -> Iterator[float]:
        """Trains for one epoch; yields the loss of every step."""
        for rows in torch.randperm(len(self.data.images), generator=self.generator).split(self.recipe.batch):
            rows = rows.to(self.device)
            loss = F.cross_entropy(self.network(self.data.images[rows]), self.data.digits[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield loss.item()

    def accuracy(self) -> float:
        """The share of the held-out digits that the network classifies correctly."""
        with torch.no_grad():
            predicted = self.network(self.data.held_out_images).argmax(1)
        return (predicted == self.data.held_out_digits).float().mean().item()

    def epochs(self) -> Iterator[tuple[float, float]]:
        """Trains for all epochs; yields the mean loss and the held-out accuracy after each."""
        for _ in range(self.recipe.epochs):
            losses = list(self.steps())
            self.schedule.step()
            yield sum(losses) / len(losses), self.accuracy()
