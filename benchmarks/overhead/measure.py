"""The measurement of a row: our call, torch's and a null Function are timed in turn, and our launches and allocations counted."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead.counts import Count, Counts
from benchmarks.overhead.null import Plan, layout, null_call, workspace
from benchmarks.overhead.rows import Row, Subject
from benchmarks.results import Row as ResultRow
from benchmarks.timing import Limits, Sampler, interleave, loop_sampler, ratio, summarize

_WARM_UP = 30  # calls; by then the package remembers what it will of calls like these
_UNTIMED = 5  # calls before a sample, after others were made or a block was entered
_SECONDS = 4e-3  # of a sample, which is the mean of the calls in that time
_CALLS_ON_GPU = 200  # in a stream, at whose end the host waits for the device

Around = Callable[[], AbstractContextManager[Any]]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Stops garbage collection, and makes torch compute on one thread, within the block."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def _wanted(row: Row, subject: Subject) -> tuple[Tensor, ...]:
    return {"fprop": (), "dx": subject.inputs[:1], "train": subject.inputs}[row.direction]


def _whole(forward: Callable[[], Any], wanted: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    """The forward pass, and the backward pass if gradients are wanted."""
    if not wanted:
        return forward

    def step() -> None:
        result = forward()
        torch.autograd.grad(result if isinstance(result, Tensor) else result[0], wanted, dy)

    return step


def _around(row: Row, subject: Subject) -> dict[str, Around]:
    """For each provider, what its calls are made in."""
    grad: Around = torch.no_grad if row.direction == "fprop" else nullcontext

    @contextmanager
    def ours() -> Iterator[None]:
        with grad(), subject.around():
            yield

    return {"ours": ours, "torch": grad, "null": grad}


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _sampler(call: Callable[[], object], around: Around) -> Sampler:
    """A sampler of the CPU time of this process."""
    with around():
        _repeat(call, _WARM_UP)
        sample = loop_sampler(call, _SECONDS, time.process_time)

    def within() -> float:
        with around():
            _repeat(call, _UNTIMED)
            return sample()

    return within


def _stream_sampler(call: Callable[[], object], around: Around, calls: int) -> Sampler:
    """A sampler of the time that a stream of calls takes, until the device has computed them."""

    def sample() -> float:
        with around():
            _repeat(call, _UNTIMED)
            torch.cuda.synchronize()
            began = time.perf_counter()
            _repeat(call, calls)
            torch.cuda.synchronize()
            return (time.perf_counter() - began) / calls

    sample()
    return sample


def count_whole(row: Row, subject: Subject, count: Count) -> tuple[Counts, Plan, Tensor]:
    """Returns the counts of a whole call of ours, the plan of the null Function that is like it, and a gradient of its output."""
    wanted = _wanted(row, subject)
    with _around(row, subject)["ours"]():
        dy = torch.randn_like(_outputs(subject.ours())[0])
        _repeat(_whole(subject.ours, wanted, dy), _WARM_UP)
        forward, result = count(subject.ours)
        outputs = _outputs(result)
        backward, gradients = count(lambda: torch.autograd.grad(outputs[0], wanted, dy)) if wanted else (Counts(0, ()), ())
    by_input = {id(tensor): layout(gradient) for tensor, gradient in zip(wanted, gradients, strict=True)}
    plan = Plan(
        outputs=tuple(layout(output) for output in outputs),
        gradients=tuple(by_input.get(id(tensor)) for tensor in subject.inputs),
        forward=workspace(forward.allocated, outputs),
        backward=workspace(backward.allocated, gradients),
    )
    return Counts(forward.launches + backward.launches, forward.allocated + backward.allocated), plan, dy


def measure(row: Row, rounds: int, count: Count) -> ResultRow:
    """Measures a row on the CPU, where launches have to do nothing, and on the GPU if there is one.

    A compiled graph has no null Function: it would leave nothing of it.
    """
    subject = row.build(torch.device("cpu"))
    wanted, around = _wanted(row, subject), _around(row, subject)
    counts, plan, dy = count_whole(row, subject, count)
    forwards = {"ours": subject.ours, "torch": subject.torchs}
    if not row.compiled:
        forwards["null"] = null_call(plan, subject.inputs)
    with undisturbed():
        samplers = {name: _sampler(_whole(forward, wanted, dy), around[name]) for name, forward in forwards.items()}
        samples = interleave(samplers, Limits(least=rounds, most=rounds))
    times = {name: summarize(seconds).scaled(1e6).as_json() for name, seconds in samples.items()}
    measured = {
        "row": row.name,
        "at_most": row.at_most,
        "us": times,
        "ratio": ratio(samples["torch"], samples["ours"]).as_json(),  # ours / torch
        "launches": counts.launches,
        "allocations": len(counts.allocated),
        "gpu_us": measure_streams(row, rounds, torch.device("cuda")) if torch.cuda.is_available() else None,
    }
    if row.compiled:
        torch.compiler.reset()
    return measured


def measure_streams(row: Row, rounds: int, device: torch.device, calls: int = _CALLS_ON_GPU) -> dict[str, Any]:
    """The times of a row's calls, ours and torch's, in streams of real calls on a device."""
    subject = row.build(device)
    wanted, around = _wanted(row, subject), _around(row, subject)
    with around["torch"]():
        dy = torch.randn_like(_outputs(subject.torchs())[0])
    with undisturbed():
        samplers = {
            name: _stream_sampler(_whole(forward, wanted, dy), around[name], calls)
            for name, forward in (("ours", subject.ours), ("torch", subject.torchs))
        }
        samples = interleave(samplers, Limits(least=rounds, most=rounds))
    return {name: summarize(seconds).scaled(1e6).as_json() for name, seconds in samples.items()}
