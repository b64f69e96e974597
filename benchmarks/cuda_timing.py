"""Timing of calls on a CUDA device by events, with a cold and with a warm L2 cache; short calls are replayed from CUDA graphs.

Cold: a buffer larger than L2 is overwritten before every sample. While that runs, the host enqueues the call, so the sample
includes host time only if enqueuing takes longer than the overwriting. Warm: the call is repeated back to back for about a
millisecond.
Graph replay excludes the host altogether, but each replay has a start-up time of its own (the ceiling `empty_graph_us`), so
either all calls of a case are replayed or none is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.timing import Limits, Sampler, interleave

#: If any call of a case is estimated to take fewer seconds than this, host time included, all calls of the case are replayed from
#: graphs, provided that all can be captured.
GRAPH_BELOW = 200e-6
_WARM_SECONDS = 1e-3


class L2Flush:
    """Overwrites a buffer that is twice the size of the L2 cache."""

    def __init__(self, device: torch.device):
        self.buffer = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.int8, device=device)

    def __call__(self) -> None:
        self.buffer.zero_()


def _between_events(before: Callable[[], None], call: Callable[[], object], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def _nothing() -> None:
    pass


def estimate(call: Callable[[], object], calls: int = 5) -> float:
    """Seconds per warm call, including host time."""
    call()
    return _between_events(_nothing, call, calls)


def capture(call: Callable[[], tuple[torch.Tensor, ...]], times: int) -> Callable[[], None]:
    """Captures `times` calls in a graph and returns the function that replays it.

    Raises:
        RuntimeError: the call cannot be captured, or a replayed result differs in norm by more than 2% from that of the call.
    """
    expected = [tensor.clone() for tensor in call()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(times):
            results = call()
    for tensor in results:
        tensor.fill_(float("nan"))
    graph.replay()
    for tensor, reference in zip(results, expected, strict=True):
        if not (tensor.double() - reference.double()).norm() <= 0.02 * reference.double().norm():
            raise RuntimeError("the replayed graph computed something else")
    return graph.replay


@dataclass
class Timed:
    """Samples in seconds per call by provider, and the method by which they were taken."""

    cold: dict[str, list[float]]
    warm: dict[str, list[float]]
    method: str


def measure(calls: Mapping[str, Callable[[], tuple[torch.Tensor, ...]]], flush: Callable[[], None], limits: Limits) -> Timed:
    """Times the calls in turn, first cold and then warm.

    The current stream must not be the default one, on which CUDA cannot capture graphs.
    """
    estimates = {name: estimate(call) for name, call in calls.items()}
    once: dict[str, Callable[[], object]] = dict(calls)
    many, repeats = once, {name: max(1, round(_WARM_SECONDS / seconds)) for name, seconds in estimates.items()}
    method = "events"
    if min(estimates.values()) < GRAPH_BELOW:
        try:
            once = {name: capture(call, 1) for name, call in calls.items()}
            repeats = {name: max(1, round(_WARM_SECONDS / estimate(once[name]))) for name in calls}
            many = {name: capture(call, repeats[name]) for name, call in calls.items()}
            method = "graph"
        except RuntimeError as error:
            torch.cuda.synchronize()
            once, many = dict(calls), dict(calls)
            method = f"events, since not every call could be captured: {str(error).splitlines()[0]}"
    _warm_up(once, seconds=min(0.5, limits.seconds))
    cold = interleave({name: _sampler(flush, call, 1) for name, call in once.items()}, limits)
    if method == "graph":
        warm = interleave({name: _scaled(_sampler(_nothing, call, 1), repeats[name]) for name, call in many.items()}, limits)
    else:
        warm = interleave({name: _sampler(_nothing, call, repeats[name]) for name, call in many.items()}, limits)
    return Timed(cold, warm, method)


def _sampler(before: Callable[[], None], call: Callable[[], object], calls: int) -> Sampler:
    return lambda: _between_events(before, call, calls)


def _scaled(sampler: Sampler, calls: int) -> Sampler:
    return lambda: sampler() / calls


def _warm_up(calls: Mapping[str, Callable[[], object]], seconds: float) -> None:
    """Keeps the device busy for `seconds`, so that its clocks rise."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for call in calls.values():
            call()
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[int, int]:
    """The peak of the bytes that a call allocates, and the part of this peak that is not its results (the workspace)."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return peak, max(0, peak - sum(tensor.untyped_storage().nbytes() for tensor in results))
