"""torch's own sample and error inputs (op_db) through torch_unroll: values, gradients and exception types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled import conv2d as compiled_conv2d
from torch_unroll.kernels.cuda.conv2d import choice
from torch_unroll.testing import Target, assert_as_accurate, targets
from torch_unroll.unfold import unfold

OPS = {
    "nn.functional.conv2d": (conv2d, F.conv2d),
    "nn.functional.conv_transpose2d": (conv_transpose2d, F.conv_transpose2d),
    "nn.functional.unfold": (unfold, F.unfold),
}
INFO = {info.name: info for info in op_db if info.name in OPS and not info.variant_test_name}


def _coarse(value: torch.Tensor) -> torch.Tensor:
    """In eight bits, which TF32 has as well: products of such numbers are the same in both."""
    return value.detach().bfloat16().to(value.dtype)


def _leaves(arguments: Any, dtype: torch.dtype | None, coarse: bool) -> tuple[Any, list[torch.Tensor]]:
    """The arguments with fresh leaves (in another dtype) for their floating-point tensors, and those that want a gradient."""

    def renew(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        given = _coarse(value) if coarse else value.detach()
        return given.to(dtype or value.dtype).requires_grad_(value.requires_grad)

    renewed = tree_map(renew, arguments)
    return renewed, [leaf for leaf in tree_flatten(renewed)[0] if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def _run(
    function: Any, sample: Any, dtype: torch.dtype | None = None, coarse: bool = False, **options: Any
) -> list[torch.Tensor]:
    """The output and the gradients under a fixed, uneven weighting of the output."""
    (input, args, kwargs), leaves = _leaves((sample.input, sample.args, sample.kwargs), dtype, coarse)
    output = function(input, *args, **kwargs, **options)
    weighting = torch.linspace(-1, 1, output.numel(), dtype=torch.float64, device=output.device).view(output.shape)
    weighting = (_coarse(weighting) if coarse else weighting).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, weighting)] if leaves else [output]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
@pytest.mark.parametrize("name", OPS)
def test_samples(name: str, target: Target, dtype: torch.dtype) -> None:
    ours, theirs = OPS[name]
    samples = list(INFO[name].sample_inputs(target.device, dtype, requires_grad=True))
    assert samples
    for sample in samples:
        exact = _run(theirs, sample, torch.float64)
        for result, torchs, truth in zip(_run(ours, sample, engine=target.engine), _run(theirs, sample), exact, strict=True):
            assert_as_accurate(result, torchs, truth, f"{name}{tuple(sample.input.shape)} {sample.args} {sample.kwargs}")


#: What a variant's units do not multiply.
UNTAKEN = dict.fromkeys(("hopper", "tensor"), ((torch.float32, "ieee"), (torch.float64, "ieee")))
#: dtype, and the precision of its products
MATHS = [
    (torch.float16, "ieee"),
    (torch.bfloat16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
    (torch.float64, "ieee"),
]


@pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")
@pytest.mark.parametrize(("dtype", "precision"), MATHS, ids=str)
@pytest.mark.parametrize("variant", [each.name for each in choice.VARIANTS["fprop"]])
@pytest.mark.parametrize("name", ["nn.functional.conv2d", "nn.functional.conv_transpose2d"])
def test_samples_through_each_variant(
    name: str, variant: str, dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a variant takes a direction it computes it; the others are left to whatever is chosen."""
    taken = 0

    def preferred(direction: str, problem: Any, device: Any, forced: Any) -> choice.Chosen:
        nonlocal taken
        (of,) = (each for each in choice.VARIANTS[direction] if each.name == variant)
        takes = of.refuses(direction, problem, device) is None
        taken += takes
        return choice.choose(direction, problem, device, variant if takes else None)

    monkeypatch.setattr(compiled_conv2d, "choose", preferred)
    ours, theirs = OPS[name]
    for sample in INFO[name].sample_inputs("cpu", dtype, requires_grad=True):
        coarse = precision == "tf32"
        exact = _run(theirs, sample, torch.float64, coarse)
        results = _run(ours, sample, coarse=coarse, engine="cuda", precision=precision)
        for result, torchs, truth in zip(results, _run(theirs, sample, coarse=coarse), exact, strict=True):
            assert_as_accurate(result, torchs, truth, f"{name}{tuple(sample.input.shape)} {sample.args} {sample.kwargs}")
    assert bool(taken) == ((dtype, precision) not in UNTAKEN.get(variant, ()))


@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
@pytest.mark.parametrize("name", [name for name in OPS if INFO[name].error_inputs_func is not None])
def test_errors(name: str, target: Target) -> None:
    errors = list(INFO[name].error_inputs(target.device))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type):
            OPS[name][0](sample.input, *sample.args, **sample.kwargs, engine=target.engine)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64], ids=str)
def test_what_no_engine_claims_is_torchs(name: str, dtype: torch.dtype) -> None:
    if not INFO[name].supports_dtype(dtype, "cpu"):
        pytest.skip(f"torch's operator has no {dtype} either")
    ours, theirs = OPS[name]
    for sample in INFO[name].sample_inputs("cpu", dtype):
        expected = theirs(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours(sample.input, *sample.args, **sample.kwargs), expected)
