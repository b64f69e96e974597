"""Calls the functions and modules below with torch's own sample inputs and error inputs (op_db, module_db): inside `override`,
after `replace`, and with `torch_unroll.nn` in place of torch.nn.

Values and gradients are as accurate as torch's, and exceptions have the types of torch's. The databases have no entries for fold,
nn.Fold and nn.Unfold; the samples of unfold are used for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from tests.programs.torch_databases import load, module_infos, op_infos
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.shapes import dtype_name
from torch_unroll.testing import Target, assert_as_accurate, raised, sample_results, targets

OP_INFOS = {name.removeprefix("nn.functional."): info for name, info in op_infos().items() if name.startswith("nn.functional.")}
MODULE_INFOS = module_infos()
FunctionInput, ModuleErrorEnum, ModuleInput = (
    getattr(load("common_modules"), name) for name in ("FunctionInput", "ModuleErrorEnum", "ModuleInput")
)
SampleInput = load("opinfo.core").SampleInput

_CONVOLUTION = ("conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad")
_COLUMNS = ("im2col", "col2im")
_POOLING = ("max_pool2d_forward", "max_pool2d_backward", "max_pool2d_indices")

#: torch's functions, and parts of the names of the kernels that their samples launch in forward and backward.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "conv2d": (F.conv2d, _CONVOLUTION),
    "conv_transpose2d": (F.conv_transpose2d, _CONVOLUTION),
    "unfold": (F.unfold, _COLUMNS),
    "fold": (F.fold, _COLUMNS),
    "max_pool2d": (F.max_pool2d, _POOLING),
}
#: torch's modules, and parts of the names of the kernels that their samples launch.
MODULES: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv2d": (nn.Conv2d, _CONVOLUTION),
    "ConvTranspose2d": (nn.ConvTranspose2d, _CONVOLUTION),
    "MaxPool2d": (nn.MaxPool2d, _POOLING),
    "RNN": (nn.RNN, ("rnn", "conv2d_wgrad")),  # a convolution computes the gradients of the weights
    "RNNCell": (nn.RNNCell, ("rnn_cell_forward", "rnn_cell_backward")),
    "Unfold": (nn.Unfold, _COLUMNS),
    "Fold": (nn.Fold, _COLUMNS),
}
#: Each module with each way in which it can be made to use torch_unroll.
WAYS = [
    (name, way) for name in MODULES for way in ("override", "replace", "direct") if way == "override" or name in tu.nn.__all__
]
#: Function or module with many samples -> n: the quick suite uses every n-th sample. The values of each option repeat after a
#: number of samples that has no factor in common with n, so every value is used.
STEPS = {"max_pool2d": 11, "unfold": 5, "fold": 5, "RNN": 7, "Unfold": 11, "Fold": 11}


def _places() -> list[Any]:
    """Pairs of target and dtype: engine `torch` in float64; other engines in float32 and, in the long suite, also in float64."""
    places = []
    for target in targets("conv2d"):
        for dtype in (torch.float64, torch.float32):
            if target.engine != "torch" or dtype == torch.float64:
                slow = target.engine != "torch" and dtype == torch.float64
                marks = [pytest.mark.slow] if slow else []
                places.append(pytest.param(target, dtype, id=f"{target}-{dtype_name(dtype)}", marks=marks))
    return places


def _parts(cases: Iterable[tuple[str, ...]]) -> list[Any]:
    """Each case with the step between the samples that are used; the long suite also runs each case with all samples."""
    parts = []
    for case in cases:
        name, step = "-".join(case), STEPS.get(case[0], 1)
        parts.append(pytest.param(*case, step, id=name))
        if step > 1:
            parts.append(pytest.param(*case, 1, id=f"{name}-all", marks=pytest.mark.slow))
    return parts


def _op_samples(name: str, device: torch.device, dtype: torch.dtype) -> list[SampleInput]:
    if name != "fold":
        # Seeding the generator for each of a thousand samples would take longer than the comparison.
        return list(OP_INFOS[name].sample_inputs(device, dtype, requires_grad=True, set_seed=False))
    return [
        SampleInput(
            F.unfold(sample.input.detach(), *sample.args, **sample.kwargs).requires_grad_(),
            args=(sample.input.shape[-2:], *sample.args),
            kwargs=sample.kwargs,
        )
        for sample in _op_samples("unfold", device, dtype)
    ]


def _module_samples(name: str, device: torch.device, dtype: torch.dtype, training: bool) -> list[ModuleInput]:
    if name in ("Unfold", "Fold"):
        return [
            ModuleInput(FunctionInput(*sample.args, **sample.kwargs), FunctionInput(sample.input))
            for sample in _op_samples(name.lower(), device, dtype)
        ]
    info, packed = MODULE_INFOS[name], {"with_packed_sequence": True} if name == "RNN" else {}
    return info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training, **packed)


def _way_in(way: str) -> AbstractContextManager[object]:
    return tu.override() if way == "override" else nullcontext()


def _torchs_model(name: str, constructor: FunctionInput) -> nn.Module:
    return MODULES[name][0](*constructor.args, **constructor.kwargs)


def _our_model(name: str, way: str, constructor: FunctionInput) -> nn.Module:
    """A module that uses torch_unroll if it is called inside `_way_in(way)`."""
    if way == "direct":
        return getattr(tu.nn, name)(*constructor.args, **constructor.kwargs)
    model = _torchs_model(name, constructor)
    if way == "replace":
        assert tu.replace(model).swapped == {"": name}
    return model


def _results(function: Callable[..., Any], sample: SampleInput, dtype: torch.dtype) -> list[Tensor]:
    """The outputs, and the gradients of inputs and parameters."""
    if not isinstance(function, nn.Module):
        return sample_results(function, sample, dtype)
    model = copy.deepcopy(function).to(dtype)
    return sample_results(model, sample, dtype, parameters=model.parameters())


def _is_compiled(target: Target) -> bool:
    return target.engine in ("cuda", "cupy")


def _launched(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    sample: SampleInput,
    way: str,
    target: Target,
    dtype: torch.dtype,
    what: str,
) -> set[str]:
    """Compares the results of a sample with torch's; returns the names of the kernels that were launched."""
    with _way_in(way), tu.use_engine(target.engine), recording() as recorded:
        results = _results(ours, sample, dtype)
    torchs = _results(theirs, sample, dtype)
    exact = torchs if dtype == torch.float64 else _results(theirs, sample, torch.float64)
    for number, (result, expected, truth) in enumerate(zip(results, torchs, exact, strict=True)):
        assert_as_accurate(result, expected, truth, f"{what}: result {number}")
    kernels = {plan.kernel.name for _, plan in recorded.launches}
    assert kernels or not _is_compiled(target) or results[0].numel() == 0, f"{what}: no kernel was launched"
    return kernels


def _assert_all_launched(expected: Iterable[str], launched: set[str], target: Target) -> None:
    if _is_compiled(target):
        missing = [part for part in expected if not any(part in kernel for kernel in launched)]
        assert not missing, f"expected kernels named {missing}, got {sorted(launched)}"


@pytest.mark.parametrize(("target", "dtype"), _places())
@pytest.mark.parametrize(("name", "step"), _parts((name,) for name in FUNCTIONS))
def test_samples_of_functions(name: str, step: int, target: Target, dtype: torch.dtype) -> None:
    function, expected = FUNCTIONS[name]
    launched: set[str] = set()
    for sample in _op_samples(name, target.device, dtype)[::step]:
        what = f"{name}{tuple(sample.input.shape)} {sample.args} {sample.kwargs}"
        launched |= _launched(function, function, sample, "override", target, dtype, what)
    _assert_all_launched(expected, launched, target)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("target", "dtype"), _places())
@pytest.mark.parametrize(("name", "way", "step"), _parts(WAYS))
def test_samples_of_modules(name: str, way: str, step: int, target: Target, dtype: torch.dtype, training: bool) -> None:
    launched: set[str] = set()
    for case in _module_samples(name, target.device, dtype, training)[::step]:
        theirs = _torchs_model(name, case.constructor_input).to(target.device, dtype).train(training)
        ours = _our_model(name, way, case.constructor_input).to(target.device, dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        input, *further = case.forward_input.args
        sample = SampleInput(input, args=tuple(further))
        launched |= _launched(ours, theirs, sample, way, target, dtype, f"{theirs} of a {type(input).__name__}")
    _assert_all_launched(MODULES[name][1], launched, target)


@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name in OP_INFOS and OP_INFOS[name].error_inputs_func])
def test_error_inputs_of_functions(name: str, target: Target) -> None:
    errors = list(OP_INFOS[name].error_inputs(target.device))
    assert errors
    for error in errors:
        sample = error.sample_input
        call = partial(FUNCTIONS[name][0], sample.input, *sample.args, **sample.kwargs)
        expected = raised(call)
        assert isinstance(expected, error.error_type)
        with tu.override(), tu.use_engine(target.engine):
            result = raised(call)
        assert type(result) is type(expected), f"torch: {expected!r}\nours: {result!r}"


@pytest.mark.parametrize(("target", "dtype"), _places())
@pytest.mark.parametrize(
    ("name", "way"),
    [case for case in WAYS if case[0] in MODULE_INFOS and MODULE_INFOS[case[0]].module_error_inputs_func],
)
def test_error_inputs_of_modules(name: str, way: str, target: Target, dtype: torch.dtype) -> None:
    info = MODULE_INFOS[name]
    errors = info.module_error_inputs_func(info, device=target.device, dtype=dtype, requires_grad=True, training=True)
    if way == "replace":  # if the constructor raises, there is no module to replace
        errors = [error for error in errors if error.error_on is ModuleErrorEnum.FORWARD_ERROR]
    assert errors
    for error in errors:
        constructor, inputs = error.module_error_input.constructor_input, error.module_error_input.forward_input

        def run(make: Callable[[], nn.Module], inputs: FunctionInput = inputs) -> Any:
            return make().to(target.device, dtype)(*inputs.args, **inputs.kwargs)

        expected = raised(partial(run, partial(_torchs_model, name, constructor)))
        assert isinstance(expected, error.error_type)
        with _way_in(way), tu.use_engine(target.engine):
            result = raised(partial(run, partial(_our_model, name, way, constructor)))
        assert type(result) is type(expected), f"torch: {expected!r}\nours: {result!r}"
