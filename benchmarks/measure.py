"""The measurement of a case: every engine and baseline is checked against float64, and those that are right are timed.

Emulated and simulated engines are only checked, on a smaller case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.check import finite, relative_error
from benchmarks.cuda_timing import L2Flush, measure, peak_bytes
from benchmarks.environment import clocks
from benchmarks.providers import Call, double, is_engine
from benchmarks.results import Row
from benchmarks.timing import Limits, interleave, loop_sampler, ratio, summarize


@dataclass
class Setting:
    """How a run measures its cases."""

    device: torch.device
    engines: tuple[str, ...]
    baselines: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    seed: int = 0


@contextmanager
def fair(dtype: str) -> Iterator[None]:
    """Lets cuDNN search all its algorithms, which is best for fixed shapes, and sets the precision of float32 products."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    precision = "tf32" if dtype == "tf32" else "ieee"
    switches = (cudnn.conv, cudnn.rnn, matmul)
    before = cudnn.benchmark, cudnn.benchmark_limit, [switch.fp32_precision for switch in switches]
    cudnn.benchmark, cudnn.benchmark_limit = True, 0
    for switch in switches:
        switch.fp32_precision = precision
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.benchmark_limit, precisions = before
        for switch, value in zip(switches, precisions, strict=True):
            switch.fp32_precision = value


def stands_in(engine: str, device: torch.device) -> str | None:
    """Returns "emulated" or "simulated" if the engine's kernels do not run natively on the device, so that their times mean
    nothing, and None otherwise."""
    if device.type == "cuda" or engine == "torch":
        return None
    return "emulated" if engine == "cuda" else "simulated"


def _seconds_of_first_call(call: Call, device: torch.device) -> tuple[tuple[Tensor, ...], float]:
    began = time.perf_counter()
    results = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return results, time.perf_counter() - began


@dataclass(frozen=True)
class Reference:
    """Results of torch in float64 (`exact`) and in the case's own dtype (`torchs`)."""

    exact: Sequence[Tensor]
    torchs: Sequence[Tensor]
    seconds: float  # of torch's first call in the case's dtype


class Measurement:
    """Measures one case; `row` goes into the result file."""

    def __init__(self, case: Case, setting: Setting):
        self.case, self.setting = case, setting
        self.providers: dict[str, Any] = {}
        self.calls: dict[str, Call] = {}
        self.row: Row = {
            "case": case.key,
            "op": case.op,
            "direction": case.direction,
            "dtype": case.dtype,
            "layout": case.layout,
            "flops": case.flops,
            "bytes": case.bytes,
            "status": "ok",
            "providers": self.providers,
            "ratios": {},
        }

    def run(self) -> Row:
        """Checks the providers, times those that are right and run natively, and returns the row."""
        device = self.setting.device
        self.row["clocks_before"] = clocks(device)
        with fair(self.case.dtype):
            if device.type == "cuda":
                with torch.cuda.stream(torch.cuda.Stream(device)):
                    self._check_all()
                    self._time_cuda()
                torch.cuda.synchronize()
            else:
                self._check_all()
                self._time_cpu()
        if "compile" in self.providers:
            torch.compiler.reset()  # frees what was compiled for this case
        self.row["clocks_after"] = clocks(device)
        self.row["status"] = _worst([provider["status"] for provider in self.providers.values()])
        return self.row

    def _check_all(self) -> None:
        operation, device, seed = self.case.operation, self.setting.device, self.setting.seed
        baselines = [name for name in self.setting.baselines if name in operation.baselines]
        native = [name for name in self.setting.engines if not stands_in(name, device)]
        if native or baselines:
            tensors = operation.tensors(self.case, device, seed)
            reference = self._reference(self.case, tensors)
            for name in (*native, *baselines):
                self._check(name, self.case, tensors, reference)
        small = self.case.shrunk()
        for name in self.setting.engines:
            if name not in native:
                tensors = operation.tensors(small, device, seed)
                self._check(name, small, tensors, self._reference(small, tensors))
                self.calls.pop(name, None)

    def _reference(self, case: Case, tensors: dict[str, Tensor]) -> Reference:
        """Computes the expected results.

        Raises:
            ValueError: the results in float64 are not finite.
        """
        torch.backends.cudnn.benchmark = False  # this call is not timed and needs no search of algorithms
        exact = case.operation.call(case, double(tensors), "eager")()
        torch.backends.cudnn.benchmark = True
        if not finite(exact):
            raise ValueError("the float64 reference is not finite")
        return Reference(exact, *_seconds_of_first_call(case.operation.call(case, tensors, "eager"), self.setting.device))

    def _check(self, name: str, case: Case, tensors: dict[str, Tensor], reference: Reference) -> None:
        entry: dict[str, Any] = {"status": "ok", "message": ""}
        self.providers[name] = entry
        substitute = stands_in(name, self.setting.device) if is_engine(name) else None
        if is_engine(name):
            reason = case.operation.refusal(case, name, self.setting.device)
            if reason:
                entry.update(status="refused", message=reason)
                return
        try:
            call = case.operation.call(case, tensors, name)
            results, first = _seconds_of_first_call(call, self.setting.device)
        except torch.OutOfMemoryError as error:
            entry.update(status="out of memory", message=str(error).splitlines()[0])
            torch.cuda.empty_cache()
            return
        except Exception as error:  # whatever a kernel or a compiler raises belongs in this row and must not end the run
            entry.update(status="error", message=f"{type(error).__name__}: {error}"[:500])
            return
        wrong = case.operation.complaint(case, name, tensors, results, reference.exact, reference.torchs)
        entry["error"] = _number(relative_error(results, reference.exact))
        entry["torch_error"] = _number(relative_error(reference.torchs, reference.exact))
        if wrong:
            entry.update(status="wrong", message=wrong)
        elif substitute:
            entry.update(status="checked", message=f"{substitute}, at {case.shape.text()}: not timed")
        else:
            entry["first_call_ms"] = 1e3 * (reference.seconds if name == "eager" else first)
            self.calls[name] = call

    def _time_cpu(self) -> None:
        if self.calls:
            samples = interleave({name: loop_sampler(call) for name, call in self.calls.items()}, self.setting.limits)
            self._report("warm", samples)
            self.row["method"] = "host clock"

    def _time_cuda(self) -> None:
        if not self.calls:
            return
        for name, call in self.calls.items():
            peak, workspace = peak_bytes(call)
            self.providers[name].update(peak_bytes=peak, workspace_bytes=workspace)
        timed = measure(self.calls, L2Flush(self.setting.device), self.setting.limits)
        self.row["method"] = timed.method
        self._report("cold", timed.cold)
        self._report("warm", timed.warm)

    def _report(self, cache: str, samples: dict[str, list[float]]) -> None:
        for name, seconds in samples.items():
            self.providers[name][cache] = summarize(seconds).scaled(1e6).as_json()
        for ours in filter(is_engine, samples):
            for theirs in samples:
                if not is_engine(theirs):
                    compared = self.row["ratios"].setdefault(f"{ours}/{theirs}", {})
                    compared[cache] = ratio(samples[ours], samples[theirs]).as_json()


def _number(value: float) -> float | None:
    """None for infinities and NaN, which JSON cannot represent."""
    return value if math.isfinite(value) else None


_SEVERITY = ("ok", "checked", "refused", "out of memory", "error", "wrong")


def _worst(statuses: list[str]) -> str:
    return max(statuses, key=_SEVERITY.index, default="refused")


def overhead(case: Case, provider: str, device: torch.device, calls: int = 50) -> float:
    """Microseconds of host time that one call of a small case takes.

    `calls` must be small enough not to fill the launch queue; once it is full, the host waits for the device.
    """
    call = case.operation.call(case, case.operation.tensors(case, device, 0), provider)
    samples = []
    for _ in range(7):
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - began) / calls * 1e6)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return summarize(samples).median
