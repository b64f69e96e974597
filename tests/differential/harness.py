"""A case compares torch_unroll with torch for one subject, one way into torch_unroll, one transformation and one engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import torch_unroll as tu
from tests.differential.subjects import BY_NAME, Subject
from tests.differential.transformations import TRANSFORMATIONS, Results, Transformation
from torch_unroll.shapes import dtype_name

#: Dtype -> the largest difference that is allowed, because sums may be computed in another order. It is relative to the largest
#: element of torch's result, or to 0.01 if all elements are smaller.
TOLERANCE = {torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5, torch.float32: 2.0**-16, torch.float64: 2.0**-36}

Outcome = Results | Exception


@dataclass(frozen=True)
class Case:
    """A case, given by four names, so that it is easily sent to another process."""

    subject: str
    way: str
    transformation: str
    engine: str

    def __str__(self) -> str:
        return f"{self.subject}-{self.way}-{self.transformation}-{self.engine}"

    def __repr__(self) -> str:
        return str(self)


def _torchs_model(subject: Subject) -> nn.Module:
    torch.manual_seed(0)
    return subject.make(nn)


def _replaced(subject: Subject) -> tuple[nn.Module, AbstractContextManager[object]]:
    model = copy.deepcopy(_torchs_model(subject))
    tu.replace(model)
    return model, nullcontext()


def _overridden(subject: Subject) -> tuple[nn.Module, AbstractContextManager[object]]:
    return _torchs_model(subject), tu.override()


def _direct(subject: Subject) -> tuple[nn.Module, AbstractContextManager[object]]:
    model = subject.make(tu.nn)
    model.load_state_dict(_torchs_model(subject).state_dict())
    return model, nullcontext()


#: The ways in which a model comes to use torch_unroll.
WAYS: dict[str, Callable[[Subject], tuple[nn.Module, AbstractContextManager[object]]]] = {
    "replace": _replaced,
    "override": _overridden,
    "direct": _direct,
}


def _detached(results: Results) -> Results:
    """The results without their graphs; whether they require gradients is preserved."""
    return [None if tensor is None else tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in results]


def outcome(run: Callable[[nn.Module, Subject], Results], model: nn.Module, subject: Subject) -> Outcome:
    """The results of a transformation, or the exception that it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return _detached(run(model, subject))
    except Exception as error:
        return error.with_traceback(None)


@cache
def torchs(subject: str, transformation: str, plainly: bool = False) -> Outcome:
    """The outcome with torch, which is computed once for all ways and engines.

    `plainly` runs the transformation's equivalent for models of torch that do not support it, if there is one.
    """
    entry = TRANSFORMATIONS[transformation]
    run = entry.plainly if plainly and entry.plainly else entry.run
    return outcome(run, _torchs_model(BY_NAME[subject]), BY_NAME[subject])


def ours(case: Case) -> Outcome:
    """The outcome with torch_unroll."""
    subject = BY_NAME[case.subject]
    model, context = WAYS[case.way](subject)
    with tu.use_engine(case.engine), context:
        return outcome(TRANSFORMATIONS[case.transformation].run, model, subject)


def _described(result: Outcome) -> str:
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {str(result)[:400]}"
    return ", ".join(
        "None"
        if tensor is None
        else f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
        f"{'' if tensor.device.type == 'cpu' else f' on {tensor.device}'}{' with a graph' if tensor.requires_grad else ''}"
        for tensor in result
    )


def _tensors_differ(result: Tensor | None, expected: Tensor | None, precision: torch.dtype | None) -> str | None:
    if result is None or expected is None:
        return None if result is expected else f"expected {_described([expected])}, got {_described([result])}"
    if _described([result]) != _described([expected]):
        return f"expected {_described([expected])}, got {_described([result])}"
    if expected.is_meta:
        return None
    if expected.is_complex():
        return _tensors_differ(torch.view_as_real(result.detach()), torch.view_as_real(expected.detach()), precision)
    if not expected.is_floating_point():
        return None if torch.equal(result, expected) else f"expected {expected.tolist()}, got {result.tolist()}"
    finite, actual = torch.isfinite(expected), result.detach().double()
    exact = expected.detach().double()
    if not torch.equal(actual.where(~finite, 0).nan_to_num(nan=0.5), exact.where(~finite, 0).nan_to_num(nan=0.5)):
        return f"other elements are infinite or NaN: {actual.tolist()} for {exact.tolist()}"
    if exact.numel() == 0:
        return None
    tolerance = max(TOLERANCE[expected.dtype], TOLERANCE[precision or expected.dtype])
    error = float((actual - exact).where(finite, 0).abs().max())
    allowed = tolerance * max(float(exact.where(finite, 0).abs().max()), 1e-2)
    return None if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}: {actual.tolist()} for {exact.tolist()}"


def results_differ(result: Results, expected: Results, precision: torch.dtype | None = None) -> str | None:
    """A description of how two lists of results differ, or None if they are equal within the tolerance.

    `precision` is the lowest precision that the results passed through, by default that of their dtype.
    """
    if len(result) != len(expected):
        return f"expected {len(expected)} results, got {len(result)}"
    for place, (tensor, wanted) in enumerate(zip(result, expected, strict=True)):
        if difference := _tensors_differ(tensor, wanted, precision):
            return f"result {place}: {difference[:400]}"
    return None


def _differ(result: Outcome, expected: Outcome, entry: Transformation) -> str | None:
    if entry.refusal is not None and isinstance(result, entry.refusal):
        return None
    if isinstance(result, Exception) and isinstance(expected, Exception):
        same = entry.wraps or type(result) is type(expected)
        return None if same else f"expected {type(expected).__name__}, got {type(result).__name__}"
    if isinstance(result, Exception) or isinstance(expected, Exception):
        return "only one of them raises"
    return results_differ(result, expected, entry.precision)


@dataclass(frozen=True)
class Verdict:
    """The result of a case: the message about the difference if it failed, and the name of torch_unroll's exception if it raised
    one."""

    difference: str | None
    raised: str | None


def judge(case: Case) -> Verdict:
    """Runs a case in this process, and compares its outcome with torch's."""
    entry, result = TRANSFORMATIONS[case.transformation], ours(case)
    expected = torchs(case.subject, case.transformation)
    if isinstance(expected, Exception) and entry.plainly and not isinstance(result, Exception):
        expected = torchs(case.subject, case.transformation, plainly=True)
    raised = type(result).__name__ if isinstance(result, Exception) else None
    difference = _differ(result, expected, entry)
    if difference is None:
        return Verdict(None, raised)
    described = (
        f"{case.subject} by {case.way} under {case.transformation} on engine {case.engine}: {difference}\n"
        f"  torch: {_described(expected)}\n  ours:  {_described(result)}\n"
        "Mend the package; or, if ours has to raise here, enter the exception and its reason in tests/differential/exceptions.py."
    )
    return Verdict(described, raised)
