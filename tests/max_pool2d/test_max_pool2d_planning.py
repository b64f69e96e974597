"""Max pooling: which variants and configurations are selected, forced and measured, and that all of them compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpus import H200
from torch_unroll.engines import load
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.max_pool2d.problem import FIXED_WINDOWS, Pool2dProblem, dense_strides
from torch_unroll.kernels.cuda.max_pool2d.variants import KERNELS, SELECTORS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.planning import Configuration, Selected, force
from torch_unroll.testing import assert_exact

pytestmark = pytest.mark.usefixtures("device")


def _problem(
    shape: tuple[int, ...],
    window: int,
    stride: int,
    padding: int,
    channels_last: bool,
    dilation: int = 1,
    direction: str = "forward",
    dtype: str = "bfloat16",
) -> Pool2dProblem:
    N, C, H, W = shape
    P, Q = ((extent + 2 * padding - dilation * (window - 1) - 1) // stride + 1 for extent in (H, W))
    return Pool2dProblem(
        direction=direction,
        dtype=dtype,
        N=N,
        C=C,
        H=H,
        W=W,
        P=P,
        Q=Q,
        window=(window, window),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        channels_last=channels_last,
        x_strides=dense_strides(C, H, W, channels_last),
    )


def _select(problem: Pool2dProblem, device: Device = H200) -> Selected[Pool2dProblem]:
    return SELECTORS[f"max_pool2d_{problem.direction}"].select(problem, device)


_2x2, _3x3, _3x3s2, _ANY = (str((name,)) for name in (*FIXED_WINDOWS.values(), "AnyWindow"))


@pytest.mark.parametrize(
    ("problem", "forward", "backward"),
    [
        (_problem((256, 64, 112, 112), 3, 2, 1, True), f"channels {_3x3s2}", f"channels {_3x3s2}"),
        (_problem((256, 64, 112, 112), 3, 2, 1, False), f"staged {_3x3s2}", f"staged {_3x3s2}"),
        (_problem((32, 480, 14, 14), 3, 1, 1, True), f"channels {_3x3}", f"channels {_3x3}"),
        (_problem((128, 512, 4, 4), 2, 2, 0, False), f"staged {_2x2}", f"staged {_2x2}"),
        (_problem((32, 3, 28, 28), 2, 2, 0, True), f"staged {_2x2}", f"staged {_2x2}"),
        (_problem((32, 64, 28, 28), 5, 1, 2, True), f"channels {_ANY}", f"channels {_ANY}"),
        (_problem((32, 64, 28, 28), 3, 2, 1, False, dilation=2), f"staged {_ANY}", f"staged {_ANY}"),
        (_problem((8, 64, 56, 56), 56, 1, 0, True), "split ('8',)", f"channels {_ANY}"),
        (_problem((8, 64, 56, 56), 56, 1, 0, False), "split ('1',)", f"staged {_ANY}"),
        (_problem((512, 512, 8, 8), 8, 1, 0, False), f"staged {_ANY}", f"staged {_ANY}"),
        (_problem((4096, 64, 200, 200), 200, 1, 0, True), "split ('8',)", "strided ()"),
        (_problem((4096, 64, 200, 200), 200, 1, 0, False), "strided ()", "strided ()"),
        (_problem((1, 1, 64, 1 << 20), 2, 2, 0, False), "strided ()", "strided ()"),
    ],
)
def test_selected_variant(problem: Pool2dProblem, forward: str, backward: str) -> None:
    plans = [_select(problem._replace(direction=direction)).plan.launch for direction in ("forward", "backward")]
    assert [f"{plan.variant} {plan.kernel.arguments[2:]}" for plan in plans] == [forward, backward]


def test_every_row_is_selected_for_some_call() -> None:
    """The kernel table holds no kernel that nothing launches."""
    reached = set()
    windows = ((2, 2), (3, 1), (3, 2), (5, 1), (9, 1), (17, 1), (182, 1))
    for (window, stride), channels_last, images in product(windows, (False, True), (2, 4096)):
        for dtype, width in product(("float16", "bfloat16", "float32", "float64"), (window + 3, 1 << 19)):
            problem = _problem((images, 8, window + 3, width), window, stride, 0, channels_last, dtype=dtype)
            for direction in ("forward", "backward", "gather"):
                reached.add(_select(problem._replace(direction=direction)).plan.launch.kernel)
            reached.add(_select(problem._replace(direction="indices", dtype="int64")).plan.launch.kernel)
    assert set(KERNELS) == reached


# ---- every configuration ---------------------------------------------------------------------------------------------------

#: name -> (N, C, H, W), channels_last, dtype, and (kernel_size, stride, padding, dilation)
SHAPES: dict[str, tuple[tuple[int, ...], bool, torch.dtype, tuple[tuple[int, int], ...]]] = {
    "pieces of channels": ((3, 16, 40, 30), True, torch.bfloat16, ((3, 3), (2, 2), (1, 1), (1, 1))),
    "several bands": ((2, 3, 61, 67), False, torch.float32, ((3, 3), (1, 1), (1, 1), (1, 1))),
    "several planes": ((3, 7, 6, 9), False, torch.float16, ((2, 2), (2, 2), (0, 0), (1, 1))),
    "odd channels": ((2, 5, 23, 31), True, torch.float64, ((3, 2), (1, 2), (1, 0), (2, 1))),
    "tall windows in pieces": ((2, 16, 70, 3), True, torch.bfloat16, ((70, 2), (1, 1), (0, 1), (1, 1))),
    "tall windows": ((2, 3, 41, 7), False, torch.float32, ((20, 3), (7, 2), (10, 1), (1, 1))),
}


def _data(name: str) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """An input with ties and NaN, and its geometry."""
    shape, channels_last, dtype, geometry = SHAPES[name]
    x = torch.randint(-4, 5, shape).to(dtype)
    x[torch.rand(shape) < 0.02] = torch.nan
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format), geometry


def _call(function: str, name: str) -> tuple[Any, ...]:
    """Returns the arguments of an operator; upstream gradients are small integers, so that no sum rounds."""
    x, geometry = _data(name)
    if function == "max_pool2d_forward":
        return (x, *geometry, False, True)
    y, offsets = _results("torch", "max_pool2d_forward", (x, *geometry, False, True))
    dy = torch.randint(-3, 4, y.shape).to(x.dtype)
    return (dy, offsets, x.shape[2:], *geometry)


def _results(engine: str, function: str, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    results = getattr(torch.ops.torch_unroll, function)(*arguments, engine)
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("function", ["max_pool2d_forward", "max_pool2d_backward"])
def test_every_configuration_computes_the_same(function: str, name: str) -> None:
    arguments = _call(function, name)
    expected = _results("torch", function, arguments)
    with recording() as recorded:
        _results("cuda", function, arguments)
    selected, selector = recorded.selections[function], SELECTORS[function]
    configurations = selector.configurations(selected.problem, selected.device)
    assert selected.configuration in configurations
    assert len(configurations) == len(set(configurations))
    launched = set()
    for configuration in configurations:
        with recording() as recorded, force(function, configuration):
            results = _results("cuda", function, arguments)
        for result, wanted in zip(results, expected, strict=True):
            assert_exact(result, wanted, str(configuration))
        assert recorded.selections[function].configuration == configuration
        ((_, plan),) = recorded.launches
        launched.add((plan.kernel, plan.config))
    assert len(launched) == len(configurations), "two configurations launch the same"


def test_configurations_worth_measuring() -> None:
    forward = SELECTORS["max_pool2d_forward"]
    planes = forward.configurations(_problem((64, 8, 56, 56), 3, 2, 1, False, dtype="float32"), H200)
    assert [str(configuration) for configuration in planes] == [*(f"staged {kib} KiB" for kib in (16, 4, 8)), "strided"]
    pixels = forward.configurations(_problem((64, 64, 28, 28), 3, 2, 1, True), H200)
    assert [configuration.tile for configuration in pixels if configuration.variant == "channels"] == [
        "256 threads",
        "128 threads",
        "64 threads",
    ]
    tall = forward.configurations(_problem((8, 64, 56, 56), 56, 1, 0, False), H200)
    assert [configuration.splits for configuration in tall if configuration.variant == "split"] == [2, 4, 8, 16]


@pytest.mark.parametrize("variant", ["channels", "staged", "strided"])
def test_a_variant_is_forced_for_the_whole_op(variant: str) -> None:
    arguments = _call("max_pool2d_forward", "pieces of channels")
    backward = _call("max_pool2d_backward", "pieces of channels")
    with recording() as recorded, force("max_pool2d", variant):
        _results("cuda", "max_pool2d_forward", arguments)
        _results("cuda", "max_pool2d_backward", backward)
    assert [plan.variant for _, plan in recorded.launches] == [variant, variant]


@pytest.mark.parametrize(
    ("variant", "name", "reason"),
    [
        ("split", "pieces of channels", "windows are less than 8 rows high"),
        ("channels", "several bands", "the layout is not channels_last"),
        ("channels", "odd channels", "5 channels are not a whole number of 16-byte pieces"),
    ],
)
def test_a_forced_variant_that_refuses_raises(variant: str, name: str, reason: str) -> None:
    arguments = _call("max_pool2d_forward", name)
    with force("max_pool2d_forward", variant), pytest.raises(RuntimeError, match=f"no variant takes .*{variant}: {reason}"):
        _results("cuda", "max_pool2d_forward", arguments)
    with force("max_pool2d", Configuration("staged", "3 KiB")), pytest.raises(RuntimeError, match="staged has tiles 16 KiB"):
        _results("cuda", "max_pool2d_forward", arguments)


# ---- measurements ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[Configuration, float]]]:
    """The entries of a table of measurements for `H200`, to be filled by the test."""
    entries: dict[str, tuple[Configuration, float]] = {}
    planning.forget()
    monkeypatch.setattr(planning, "measured", lambda op: {H200.name: entries} if op == "max_pool2d" else {})
    yield entries
    monkeypatch.undo()
    planning.forget()


@pytest.mark.parametrize(
    ("problem", "configuration"),
    [
        (_problem((8, 64, 112, 112), 3, 2, 1, True), Configuration("staged", "16 KiB")),
        (_problem((8, 64, 112, 112), 3, 2, 1, True), Configuration("channels", "64 threads")),
        (_problem((8, 64, 112, 112), 3, 2, 1, False), Configuration("strided")),
        (_problem((8, 64, 56, 56), 56, 1, 0, True), Configuration("split", splits=2)),
        (_problem((64, 64, 56, 56), 3, 2, 1, False, direction="backward"), Configuration("staged", "4 KiB")),
    ],
    ids=str,
)
def test_a_measured_configuration_is_selected(
    measured: dict[str, tuple[Configuration, float]], problem: Pool2dProblem, configuration: Configuration
) -> None:
    selector = SELECTORS[f"max_pool2d_{problem.direction}"]
    assert _select(problem).configuration != configuration
    key = selector.key(problem)
    assert key is not None
    measured[key] = configuration, 12e-6
    selected = _select(problem, replace(H200))  # another device, whose selections are not cached yet
    assert selected.configuration == configuration
    assert selected.prediction.measured
    assert selected.prediction.seconds == 12e-6


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        (Configuration("split", splits=2), "split does not take this problem"),
        (Configuration("staged", "48 KiB"), "staged has no tile 48 KiB here"),
        (Configuration("removed"), "removed does not take this problem"),
    ],
    ids=str,
)
def test_a_measured_configuration_that_cannot_be_used_is_passed_over(
    measured: dict[str, tuple[Configuration, float]], configuration: Configuration, reason: str
) -> None:
    problem = _problem((8, 64, 112, 112), 3, 2, 1, True)
    measured[str(SELECTORS["max_pool2d_forward"].key(problem))] = configuration, 12e-6
    selected = _select(problem)
    assert selected.configuration == Configuration("channels", "256 threads")
    assert not selected.prediction.measured
    assert (f"{configuration} (measured)", reason) in selected.passed_over


def test_keys() -> None:
    problem = _problem((8, 64, 112, 110), 3, 2, 1, True)
    extents = "N=8,C=64,H=112,W=110,P=56,Q=55,window=3x3,stride=2x2,padding=1x1,dilation=1x1"
    assert SELECTORS["max_pool2d_forward"].key(problem) == f"max_pool2d_forward/bfloat16/channels_last/{extents},offsets"
    assert problem._replace(with_offsets=False).key == f"bfloat16/channels_last/{extents}"
    assert problem._replace(aligned=False).key is None
    assert problem._replace(x_strides=(1, 2, 3, 4)).key is None
    nchw = _problem((8, 64, 112, 110), 3, 2, 1, False)
    assert nchw.key == f"bfloat16/nchw/{extents},offsets"


def test_keys_of_masked_sequences() -> None:
    """The steps of sequences lie outermost in memory, so a sample is not a dense plane."""
    x = torch.randn(9, 4, 6)
    with recording() as recorded:
        load("cuda").max_over_time_forward(x, torch.tensor([1, 9, 3, 4]), True)
    problem = recorded.selections["max_pool2d_forward"].problem
    assert problem.layout == "steps"
    assert str(problem.key).endswith("offsets,lengths")


# ---- predictions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward", "gather"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_predictions(direction: str, channels_last: bool) -> None:
    """Predicted times are at least as long as the bytes take at the full bandwidth, and double with the work."""
    once, twice = (
        _select(_problem((images, 64, 112, 112), 3, 2, 1, channels_last, direction=direction)).prediction for images in (64, 128)
    )
    assert once.share_of == "the memory bandwidth"
    assert 0 < once.share <= 1
    assert once.bound in ("bytes", "instructions")
    assert twice.seconds == pytest.approx(2 * once.seconds, rel=0.05)


def test_few_outputs_are_predicted_to_be_slow_without_split() -> None:
    """A global maximum of few channels keeps few threads busy, unless they share windows."""
    problem = _problem((1, 64, 56, 56), 56, 1, 0, True)
    selector = SELECTORS["max_pool2d_forward"]
    seconds = {str(c): selector.predict(problem, c, H200).seconds for c in selector.configurations(problem, H200)}
    assert seconds["split, 16 splits"] < seconds["split, 8 splits"] < seconds["split, 2 splits"]
    assert seconds["split, 16 splits"] < seconds["strided"]
