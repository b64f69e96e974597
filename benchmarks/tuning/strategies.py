"""Strategies of the search: which configurations are timed, and with how many samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.planning import Configuration

#: Returns the seconds of each configuration, the median of the given number of samples. The configurations take turns.
Timer = Callable[[Sequence[Configuration], int], dict[Configuration, float]]
#: Takes configurations in ascending order of predicted time; returns the best one, and the seconds of all that were timed.
Strategy = Callable[[Sequence[Configuration], Timer], tuple[Configuration, dict[Configuration, float]]]

#: Samples per configuration: FEW in the first round of halving, MANY in its last round and in the other strategies.
FEW, MANY = 4, 32
#: The share of the configurations that the random strategy times.
SHARE = 0.25


def grid(configurations: Sequence[Configuration], timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    """Times every configuration."""
    seconds = timer(configurations, MANY)
    return min(seconds, key=seconds.__getitem__), seconds


def random(configurations: Sequence[Configuration], timer: Timer, seed: str) -> tuple[Configuration, dict[Configuration, float]]:
    """Times the configuration predicted to be fastest, and a random SHARE of the others; the seed determines which."""
    first, *others = configurations
    return grid([first, *Random(seed).sample(others, round(SHARE * len(others)))], timer)


def halving(configurations: Sequence[Configuration], timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    """Successive halving: times all with FEW samples, the faster half with twice as many, and so on up to MANY samples.

    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016.
    """
    left, samples, seconds = list(configurations), FEW, dict[Configuration, float]()
    while True:
        seconds.update(timer(left, samples))
        left.sort(key=seconds.__getitem__)
        if samples >= MANY:
            return left[0], seconds
        left, samples = left[: ceil_divide(len(left), 2)], 2 * samples


STRATEGIES = ("grid", "random", "halving")


def by_name(name: str, seed: str) -> Strategy:
    """Returns the strategy of that name; only the random one uses the seed."""
    return partial(random, seed=seed) if name == "random" else {"grid": grid, "halving": halving}[name]
