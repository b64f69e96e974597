"""torch's own sample and error inputs (op_db) for conv2d, conv_transpose2d and unfold: values, gradients and
exception types."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.conv2d.preferred import prefer
from tests.programs.torch_databases import op_infos
from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.engines import cuda
from torch_unroll.kernels.cuda.conv2d.variants import VARIANTS
from torch_unroll.testing import Target, assert_as_accurate, sample_results, targets
from torch_unroll.unfold import unfold

OPS = {
    "nn.functional.conv2d": (conv2d, F.conv2d),
    "nn.functional.conv_transpose2d": (conv_transpose2d, F.conv_transpose2d),
    "nn.functional.unfold": (unfold, F.unfold),
}
INFO = op_infos()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", targets("conv2d"), ids=str)
@pytest.mark.parametrize("name", OPS)
def test_samples(name: str, target: Target, dtype: torch.dtype) -> None:
    ours, theirs = OPS[name]
    samples = list(INFO[name].sample_inputs(target.device, dtype, requires_grad=True))
    assert samples
    for sample in samples:
        exact = sample_results(theirs, sample, torch.float64)
        for result, torchs, truth in zip(
            sample_results(ours, sample, engine=target.engine), sample_results(theirs, sample), exact, strict=True
        ):
            assert_as_accurate(result, torchs, truth, f"{name}{tuple(sample.input.shape)} {sample.args} {sample.kwargs}")


#: Arithmetic that a variant's units do not support.
UNSUPPORTED = dict.fromkeys(("wgmma", "mma"), ((torch.float32, "ieee"), (torch.float64, "ieee")))
#: The dtypes, and the precision of their products.
MATHS = [
    (torch.float16, "ieee"),
    (torch.bfloat16, "ieee"),
    (torch.float32, "tf32"),
    (torch.float32, "ieee"),
    (torch.float64, "ieee"),
]


@pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")
@pytest.mark.parametrize(("dtype", "precision"), MATHS, ids=str)
@pytest.mark.parametrize("variant", [variant.name for variant in VARIANTS])
@pytest.mark.parametrize("name", ["nn.functional.conv2d", "nn.functional.conv_transpose2d"])
def test_samples_through_each_variant(
    name: str, variant: str, dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variant computes the directions that it accepts; the default selection computes the others."""
    accepted = prefer(monkeypatch, variant)
    ours, theirs = OPS[name]
    for sample in INFO[name].sample_inputs("cpu", dtype, requires_grad=True):
        coarse = precision == "tf32"
        exact = sample_results(theirs, sample, torch.float64, coarse=coarse)
        results = sample_results(ours, sample, coarse=coarse, engine="cuda", precision=precision)
        for result, torchs, truth in zip(results, sample_results(theirs, sample, coarse=coarse), exact, strict=True):
            assert_as_accurate(result, torchs, truth, f"{name}{tuple(sample.input.shape)} {sample.args} {sample.kwargs}")
    assert bool(accepted) == ((dtype, precision) not in UNSUPPORTED.get(variant, ()))


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
def test_calls_that_no_engine_claims_go_to_torch(name: str, dtype: torch.dtype) -> None:
    if not INFO[name].supports_dtype(dtype, "cpu"):
        pytest.skip(f"torch's operator has no {dtype} either")
    ours, theirs = OPS[name]
    for sample in INFO[name].sample_inputs("cpu", dtype):
        expected = theirs(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours(sample.input, *sample.args, **sample.kwargs), expected)
