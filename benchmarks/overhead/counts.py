"""What a call launches and allocates."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.autograd.profiler import profile


@dataclass(frozen=True)
class Counts:
    """The number of launches of a call, and the bytes of each of its allocations."""

    launches: int
    allocated: tuple[int, ...]


#: Calls a function, and returns its counts and its result.
Count = Callable[[Callable[[], Any]], tuple[Counts, Any]]


@contextmanager
def _without_log() -> Iterator[None]:
    """Discards what is written to stderr: the profiler logs each start and stop there, whatever the level of its log."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def counter(launches: Callable[[], int]) -> Count:
    """Counts by the difference of a running number of launches, and by torch's memory profiler.

    The profiler sees every allocation on the CPU and, unlike a dispatch mode or an `explain`, it does not make a call take
    another path than the calls that are timed.
    """

    def count(call: Callable[[], Any]) -> tuple[Counts, Any]:
        before = launches()
        with _without_log(), profile(profile_memory=True) as profiled:
            result = call()
        after = launches()
        assert profiled.kineto_results is not None
        sizes = [event.nbytes() for event in profiled.kineto_results.events() if event.name() == "[memory]"]
        return Counts(after - before, tuple(size for size in sizes if size > 0)), result

    return count
