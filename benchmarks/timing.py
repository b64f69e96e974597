"""Timing of calls: all are sampled in turn until their medians are steady, or a limit is reached.

This module knows nothing about devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import quantiles
from typing import Any

#: Returns one sample in seconds per call.
Sampler = Callable[[], float]


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of samples, in the unit of the samples."""

    median: float
    q1: float
    q3: float
    samples: int

    @property
    def spread(self) -> float:
        """The interquartile range relative to the median."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0

    @property
    def uncertainty(self) -> float:
        """The relative standard error of the median of normal samples: 1.2533·σ/√n with σ = (q3 − q1)/1.349."""
        return 1.2533 / 1.349 * self.spread / self.samples**0.5

    def scaled(self, factor: float) -> Summary:
        return replace(self, median=self.median * factor, q1=self.q1 * factor, q3=self.q3 * factor)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(samples: Sequence[float]) -> Summary:
    """Computes median and quartiles by the inclusive method.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    if len(samples) == 1:
        return Summary(median=samples[0], q1=samples[0], q3=samples[0], samples=1)
    q1, median, q3 = quantiles(samples, n=4, method="inclusive")
    return Summary(median=median, q1=q1, q3=q3, samples=len(samples))


@dataclass(frozen=True)
class Limits:
    """When sampling stops: once no median is more uncertain than `uncertainty`, or `seconds` are over, but not before `least`
    rounds; and always after `most` rounds."""

    least: int = 10  # rounds
    most: int = 200  # rounds
    seconds: float = 2.0
    uncertainty: float = 0.005


QUICK = Limits(least=3, most=10, seconds=0.1, uncertainty=0.02)


def interleave(
    samplers: Mapping[str, Sampler], limits: Limits, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Samples every call once per round; the calls take turns to go first, so that a drift of the device's clock rate
    affects all alike."""
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
            summarize(drawn).uncertainty <= limits.uncertainty for drawn in samples.values()
        ):
            break
    return samples


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """Summarizes the ratios theirs / ours of all rounds; above 1, ours is faster."""
    return summarize([their / our for our, their in zip(ours, theirs, strict=True)])


def loop_sampler(call: Callable[[], object], seconds: float = 1e-3, clock: Callable[[], float] = time.perf_counter) -> Sampler:
    """A sampler by a clock of the host; each sample is the mean over consecutive calls that together take about `seconds`."""
    call()
    began = clock()
    call()
    once = max(clock() - began, 1e-7)
    calls = max(1, round(seconds / once))

    def sample() -> float:
        began = clock()
        for _ in range(calls):
            call()
        return (clock() - began) / calls

    return sample
