"""A problem of the search with its tensors: which configurations compute it, which are right, and how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.check import complaint
from benchmarks.cuda_timing import L2Flush, measure
from benchmarks.providers import Call, Tensors, double
from benchmarks.timing import Limits, interleave, loop_sampler, summarize
from torch_unroll.engines import refusal, resolve_precision
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels.planning import Configuration, force, selectors

#: (op, direction) of a case -> the engine's function, such as conv2d_dgrad, for which the fastest configuration is searched.
FUNCTIONS = {
    ("conv2d", "fprop"): "conv2d_fprop",
    ("conv2d", "dgrad"): "conv2d_dgrad",
    ("conv2d", "wgrad"): "conv2d_wgrad",
    ("max_pool2d", "fprop"): "max_pool2d_forward",
    ("max_pool2d", "dgrad"): "max_pool2d_backward",
    ("rnn", "fprop"): "rnn_forward",
    ("rnn", "train"): "rnn_backward",
}


def engine_name(device: torch.device) -> str:
    """Returns the name of the compiled engine that serves a device.

    Raises:
        ValueError: there is none.
    """
    reasons = {name: refusal(name, "conv2d", device, torch.float32) for name in ("cuda", "cupy")}
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise ValueError("choices: no compiled engine runs here; " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))


OPS = tuple(dict.fromkeys(op for op, _ in FUNCTIONS))


def distinct(cases: Sequence[Case]) -> list[Case]:
    """Returns the cases that can be searched, those in FUNCTIONS: one case for each problem."""
    tuned = [_canonical(case) for case in cases if (case.op, case.direction) in FUNCTIONS]
    return list({case.key: case for case in tuned}.values())


def _canonical(case: Case) -> Case:
    """Returns the case that stands for all cases of its problem. Selections do not depend on biases or, for a recurrence, on
    the input size, the number of layers and the nonlinearity."""
    shape = case.shape
    if case.op == "conv2d":
        return replace(case, shape=replace(shape, bias=0))
    if case.op == "rnn":
        return replace(case, shape=replace(shape, I=shape.H, layers=1, nonlinearity="tanh", bias=1))
    return case


class Prepared:
    """A problem with its tensors."""

    def __init__(self, case: Case, device: torch.device, engine: str, seed: int):
        self.case, self.device = case, device
        self.function = FUNCTIONS[case.op, case.direction]
        self._engine = engine
        calls = _recurrence if case.op == "rnn" else _operation
        self._tensors, self._call, references = calls(case, device, engine, seed)
        with recording() as recorded:
            self._call()
        selected = recorded.selections[self.function]
        self._selector = selectors(case.op)[self.function]
        self.key = self._selector.key(selected.problem)
        configurations = self._selector.configurations(selected.problem, selected.device)
        #: Seconds that each configuration is predicted to take.
        self.predicted = {
            configuration: self._selector.predict(selected.problem, configuration, selected.device).seconds
            for configuration in configurations
        }
        self.configurations = sorted(configurations, key=self.predicted.__getitem__)
        nameless = replace(selected.device, name="")  # a device that no table knows
        #: The configuration that the cost model selects, without measurements.
        self.by_model = self._selector.select(selected.problem, nameless).configuration
        torch.backends.cudnn.benchmark = False  # the references are not timed, so cuDNN need not search
        self._exact, self._torchs = (reference() for reference in references)

    def complaint(self, configuration: Configuration) -> str | None:
        """Returns what is wrong with the result of a configuration, or None if nothing is."""
        with force(self.function, configuration):
            results = self._call()
        if self.case.op == "rnn":
            return complaint(results, self._exact, self._torchs)
        return self.case.operation.complaint(self.case, self._engine, self._tensors, results, self._exact, self._torchs)

    def time(self, configurations: Sequence[Configuration], samples: int) -> dict[Configuration, float]:
        """Returns the median seconds of each configuration: with a cold cache on a GPU, or by wall-clock time on the emulator."""
        limits = Limits(least=samples, most=samples, seconds=float("inf"), uncertainty=0.0)
        calls = {str(configuration): self._forced(configuration) for configuration in configurations}
        if self.device.type == "cuda":
            timed = measure(calls, L2Flush(self.device), limits).cold
        else:
            timed = interleave({name: loop_sampler(call, seconds=0.0) for name, call in calls.items()}, limits)
        return {configuration: summarize(timed[str(configuration)]).median for configuration in configurations}

    def _forced(self, configuration: Configuration) -> Call:
        def call() -> tuple[Tensor, ...]:
            with force(self.function, configuration):
                return self._call()

        return call


#: The tensors of a case, the call that is tuned, and two calls for reference: in float64, and by torch in the case's dtype.
_Calls = tuple[Tensors, Call, tuple[Callable[[], Sequence[Tensor]], Callable[[], Sequence[Tensor]]]]


def _operation(case: Case, device: torch.device, engine: str, seed: int) -> _Calls:
    operation = case.operation
    tensors = operation.tensors(case, device, seed)
    exact, torchs = operation.call(case, double(tensors), "eager"), operation.call(case, tensors, "eager")
    return tensors, operation.call(case, tensors, engine), (exact, torchs)


def _recurrence(case: Case, device: torch.device, engine: str, seed: int) -> _Calls:
    """One pass over one layer, without the product with the input, which is computed as a convolution."""
    tensors = case.operation.tensors(case, device, seed)
    names = ("w_hh_l0", "w_hh_l0_reverse")[: case.shape.directions]
    w_hh, h0 = torch.stack([tensors[name] for name in names]), tensors["h0"]
    z = dh = tensors["dy"]  # z, dh and dy are all (T, N, D·H)
    precision = resolve_precision("rnn", z)
    forward, backward = torch.ops.torch_unroll.rnn_forward, torch.ops.torch_unroll.rnn_backward
    rest = (None, None, case.shape.nonlinearity, precision)
    h = forward(z, w_hh, h0, *rest, "torch")

    def on(name: str, dtype: torch.dtype) -> Call:
        operands = [tensor.to(dtype) for tensor in ((z, w_hh, h0) if case.direction == "fprop" else (dh, h, w_hh, h0))]

        def call() -> tuple[Tensor, ...]:
            with torch.no_grad():
                result = (forward if case.direction == "fprop" else backward)(*operands, *rest, name)
            return (result,) if isinstance(result, Tensor) else tuple(result)

        return call

    return tensors, on(engine, z.dtype), (on("torch", torch.float64), on("torch", z.dtype))
