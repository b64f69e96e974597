"""How long calls take: samples of all of them in turn until their medians are steady. Nothing here knows of a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

#: Draws one sample, in seconds per call.
Sampler = Callable[[], float]


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of some samples, in the samples' unit."""

    median: float
    q1: float
    q3: float
    samples: int

    @property
    def spread(self) -> float:
        """Interquartile range relative to the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0

    @property
    def uncertainty(self) -> float:
        """Standard error of the median relative to it, were the samples normal: 1.2533·σ/√n with σ = (q3 − q1)/1.349."""
        return 1.2533 / 1.349 * self.spread / self.samples**0.5

    def scaled(self, factor: float) -> Summary:
        return Summary(self.median * factor, self.q1 * factor, self.q3 * factor, self.samples)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(samples: Sequence[float]) -> Summary:
    """Median and quartiles (inclusive method)."""
    if not samples:
        raise ValueError("no samples")
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], 1)
    q1, median, q3 = quantiles(samples, n=4, method="inclusive")
    return Summary(median, q1, q3, len(samples))


@dataclass(frozen=True)
class Limits:
    """When sampling stops: once every median is uncertain by no more than `uncertainty`, within these bounds."""

    least: int = 10
    most: int = 200
    seconds: float = 2.0
    uncertainty: float = 0.005


QUICK = Limits(least=3, most=10, seconds=0.1, uncertainty=0.02)


def interleave(
    samplers: Mapping[str, Sampler], limits: Limits, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Samples of every sampler, in turn and starting with another one each round, so that a drifting clock meets all alike."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    began, rounds = clock(), 0
    while names and rounds < limits.most:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
        rounds += 1
        if rounds < limits.least:
            continue
        if clock() - began > limits.seconds or all(
            summarize(each).uncertainty <= limits.uncertainty for each in samples.values()
        ):
            break
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """How many times faster ours is: theirs / ours of each round, then the median. Above 1 ours wins."""
    return summarize([their / our for our, their in zip(ours, theirs, strict=True)])


def loop_sampler(call: Callable[[], object], seconds: float = 1e-3) -> Sampler:
    """A sampler on the host's clock, of as many calls in a row as take about `seconds`."""
    call()
    began = time.perf_counter()
    call()
    once = max(time.perf_counter() - began, 1e-7)
    calls = max(1, round(seconds / once))

    def sample() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls

    return sample
