"""Sizes that are too large for the compiled kernels: "auto" leaves such calls to torch's own operator or to engine `torch`, while
`cuda` and `cupy`, if named, say which size is too large.

No tensor of such a size is allocated: fake tensors have no memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_unroll as tu
from tests.gpus import H200
from torch_unroll.engines import limits, select
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.problem import DIRECTIONS, Conv2dProblem
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS as CONV2D_SELECTORS
from torch_unroll.kernels.cuda.rnn.problem import Recurrence
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.testing import targets

HALF = 2**15
MANY = 65535 * 32


class _CalledOperators(TorchDispatchMode):
    """Records the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def on_gpu(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float16, device="cuda")


def rnn(T: int, N: int, inputs: int, H: int, **options: Any) -> Any:
    weights = [on_gpu(H, inputs), on_gpu(H, H)]
    return tu.rnn(on_gpu(T, N, inputs), on_gpu(1, N, H), weights, **options)


def cell(N: int, **options: Any) -> Tensor:
    return tu.rnn_cell(on_gpu(N, 4), on_gpu(N, 4), on_gpu(4, 4), on_gpu(4, 4), **options)


#: A call, and the pattern of the message about its too large size; None if no size is too large.
Call = tuple[Callable[..., Any], str | None]
CALLS: dict[str, Call] = {
    "conv2d plane": (lambda **e: tu.conv2d(on_gpu(1, 8, HALF, HALF), on_gpu(8, 8, 3, 3), **e), "input: .*32768×32768"),
    "conv2d plane below": (lambda **e: tu.conv2d(on_gpu(1, 8, HALF, HALF - 1), on_gpu(8, 8, 3, 3), **e), None),
    "conv2d without batch": (lambda **e: tu.conv2d(on_gpu(8, HALF, HALF), on_gpu(8, 8, 3, 3), **e), "input: .*32768×32768"),
    "conv2d output": (lambda **e: tu.conv2d(on_gpu(1, 1, 9, 9), on_gpu(1, 1, 3, 3), padding=HALF, **e), "output: .*65543×65543"),
    "conv2d height": (lambda **e: tu.conv2d(on_gpu(1, 1, 2**31, 1), on_gpu(1, 1, 1, 1), **e), "H = 2147483648"),
    "conv2d channels": (lambda **e: tu.conv2d(on_gpu(1, 2**30, 1, 1), on_gpu(1, 2**30, 1, 1), **e), "weight: .*1073741824×1×1"),
    "conv2d outputs": (lambda **e: tu.conv2d(on_gpu(1, 1, 1, 1), on_gpu(2**31, 1, 1, 1), **e), "K = 2147483648"),
    "conv2d outputs of groups": (lambda **e: tu.conv2d(on_gpu(1, 2, 1, 1), on_gpu(2**30, 1, 1, 1), groups=2, **e), None),
    "conv2d stride": (
        lambda **e: tu.conv2d(on_gpu(1, 1, 9, 9), on_gpu(1, 1, 3, 3), None, 2**31, 2**31, **e),
        "stride: .*2147483648",
    ),
    "conv2d stride of one": (lambda **e: tu.conv2d(on_gpu(1, 1, 9, 9), on_gpu(1, 1, 3, 3), None, 2**31, **e), None),
    "conv2d batch": (lambda **e: tu.conv2d(on_gpu(2**31, 1, 2, 2), on_gpu(1, 1, 2, 2), **e), None),
    "conv_transpose2d plane": (lambda **e: tu.conv_transpose2d(on_gpu(1, 1, HALF, HALF), on_gpu(1, 1, 3, 3), **e), "32770×32770"),
    "conv_transpose2d output": (
        lambda **e: tu.conv_transpose2d(on_gpu(1, 1, 9, 9), on_gpu(1, 1, 3, 3), None, HALF, **e),
        "262147×262147",
    ),
    "conv_transpose2d below": (lambda **e: tu.conv_transpose2d(on_gpu(1, 1, 99, 99), on_gpu(1, 1, 2, 2), None, 99, **e), None),
    "unfold height": (lambda **e: tu.unfold(on_gpu(1, 1, 2**31, 1), 1, **e), "H = 2147483648"),
    "unfold batch": (lambda **e: tu.unfold(on_gpu(2**31, 1, 2, 2), 2, **e), "N = 2147483648"),
    "unfold stride": (lambda **e: tu.unfold(on_gpu(1, 1, 9, 9), 2, 1, 2**31, 2**31, **e), "stride: .*2147483648"),
    "unfold plane": (lambda **e: tu.unfold(on_gpu(1, 1, 2**16, 2**16), 2, **e), None),
    "fold height": (lambda **e: tu.fold(on_gpu(1, 1, 2**31), (2**31, 1), 1, **e), "H = 2147483648"),
    "fold padding": (lambda **e: tu.fold(on_gpu(1, 4, 9), 9, 2, 1, 2**31, 2**31 + 2, **e), "stride: .*2147483650"),
    "fold": (lambda **e: tu.fold(on_gpu(1, 4, 2**20), 2**11, 2, 1, 0, 2, **e), None),
    "max_pool2d height": (lambda **e: tu.max_pool2d(on_gpu(1, 1, 2**31, 1), (2, 1), **e), "H = 2147483648"),
    "max_pool2d batch": (lambda **e: tu.max_pool2d(on_gpu(2**31, 1, 2, 2), 2, **e), "N = 2147483648"),
    "max_pool2d row": (lambda **e: tu.max_pool2d(on_gpu(1, 2**16, 1, 2**15), (1, 2), **e), "C·W = 2147483648"),
    "max_pool2d indices": (lambda **e: tu.max_pool2d(on_gpu(1, 1, 1, 2**31), (1, 2), return_indices=True, **e), "W = 2147483648"),
    "max_pool2d plane": (lambda **e: tu.max_pool2d(on_gpu(1, 1, 2**16, 2**16), 2, **e), None),
    "max_over_time steps": (lambda **e: tu.max_over_time(on_gpu(2**31, 1, 1), **e), "T = 2147483648"),
    "max_over_time samples": (lambda **e: tu.max_over_time(on_gpu(1, 2**16, 2**15), **e), "N·C = 2147483648"),
    "max_over_time": (lambda **e: tu.max_over_time(on_gpu(2**20, 2**10, 2**10), **e), None),
    "rnn rows": (lambda **e: rnn(2, 2**29, 1, 4, **e), "T·N = 1073741824"),
    "rnn features": (lambda **e: rnn(1, 1, 2**30, 4, **e), "features = 1073741824"),
    "rnn_cell samples": (lambda **e: cell(MANY + 1, **e), "N = 2097121"),
    "rnn_cell below": (lambda **e: cell(MANY, **e), None),
}
OWN = {"max_over_time"}  # torch has no such operator


@pytest.mark.parametrize("name", CALLS)
def test_who_serves_a_call_on_a_gpu(name: str) -> None:
    call, too_large = CALLS[name]
    function = name.partition(" ")[0]
    theirs = too_large is not None and function not in OWN
    # Some of torch's own operators, such as unfold and rnn, allocate temporary tensors that need a GPU even under FakeTensorMode.
    needs_gpu = suppress(RuntimeError) if theirs else nullcontext()
    with needs_gpu, FakeTensorMode(), recording() as recorded, _CalledOperators() as called:
        call()
    ours = any(operator.startswith("torch_unroll::") for operator in called.names)
    assert ours != theirs
    assert (recorded.too_large is None) == (too_large is None)
    if recorded.too_large:
        assert recorded.too_large[1] == ("torch's own operator" if theirs else "torch")
    with FakeTensorMode():
        for engine in ("cuda", "cupy"):
            with nullcontext() if too_large is None else pytest.raises(RuntimeError, match=too_large):
                call(engine=engine)
        for engine in ("numba", "torch") if function != "rnn" else ():
            call(engine=engine)


def test_the_predicate_of_recurrence() -> None:
    assert limits.rnn((2**20, 2**9), 1, 2**9, 4) is None
    assert limits.rnn((2**30 - 1,), 1, 1, 4) is None
    for too_large, sizes in {
        "T·N = 1073741824": ((2**20, 2**10), 1, 2**10, 4),
        "T·N = 1073741825": ((2**30 + 1,), 1, 1, 4),
        "features = 1073741824": ((1, 1), 2**30, 1, 4),
        "T = 2147483648": ((2**31, 1), 1, 1, 4),
        "H = 2147483648": ((1, 1), 1, 1, 2**31),
    }.items():
        assert too_large in str(limits.rnn(*sizes))


def test_explain_says_why() -> None:
    with FakeTensorMode():
        explanation = tu.explain("conv2d", on_gpu(1, 8, HALF, HALF), on_gpu(8, 8, 3, 3))
        assert explanation.engine == "torch's own operator"
        assert "32768×32768" in explanation.passed_over["cuda"]
        explanation = tu.explain("max_over_time", on_gpu(2**31, 1, 1))
        assert explanation.engine == "torch"
        assert "T = 2147483648" in explanation.passed_over["cuda"]


SIZES = (1, 2, 3, 2**15, 2**16, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**40)


def test_the_predicate_of_convolution_is_what_the_kernels_say() -> None:
    """In every direction, some variant accepts a problem if and only if `limits.conv2d` gives no reason against it."""
    draw, outcomes = random.Random(0), set()
    for _ in range(300):
        C, H, W, K, R, S = (draw.choice(SIZES) if draw.random() < 0.3 else draw.choice((1, 2, 5)) for _ in range(6))
        stride, padding, dilation = ([draw.choice(SIZES) if draw.random() < 0.2 else 1 for _ in range(2)] for _ in range(3))
        P, Q = (
            (e + 2 * p - d * (t - 1) - 1) // s + 1
            for e, p, d, t, s in zip((H, W), padding, dilation, (R, S), stride, strict=True)
        )
        if P <= 0 or Q <= 0:
            continue
        reason = limits.conv2d((1, C, H, W), (K, C, R, S), (1, K, P, Q), stride, padding, dilation, 1)
        dense = [(e[1] * e[2] * e[3], e[2] * e[3], e[3], 1) for e in ((1, C, H, W), (K, C, R, S), (1, K, P, Q))]
        strides = (stride[0] if P > 1 else 1, stride[1] if Q > 1 else 1)
        dilations = (dilation[0] if R > 1 else 1, dilation[1] if S > 1 else 1)
        problem = Conv2dProblem("float16", 1, C, H, W, K, R, S, P, Q, strides, tuple(padding), dilations, 1, *dense)
        for direction in DIRECTIONS:
            try:
                CONV2D_SELECTORS[f"conv2d_{direction}"].select(problem._replace(direction=direction), H200)
                served = True
            except SizeError:
                served = False
            assert served == (reason is None), (direction, problem, reason)
        outcomes.add(reason is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("engine", ["auto", "cuda", "cupy", "numba", "torch"])
def test_the_predicate_of_an_engine(engine: str) -> None:
    assert limits.serves(engine, None)
    limits.require(engine, None)
    if engine in ("numba", "torch"):
        assert limits.serves(engine, "too large")
        limits.require(engine, "too large")
        return
    with pytest.raises(SizeError, match="too large"):
        limits.require(engine, "too large")
    if engine == "auto":
        assert not limits.serves(engine, "too large")
    else:
        with pytest.raises(SizeError, match="too large"):
            limits.serves(engine, "too large")


def test_a_step_refuses_more_samples_than_its_grid_holds() -> None:
    gpu = Device(multiprocessors=132, capability=(8, 0), shared_bytes_per_block=227 << 10, l2_bytes=50 << 20)
    recurrence = Recurrence(backward=False, T=2, N=MANY + 1, H=5000, D=1, dtype="float16", precision="ieee", aligned=True)
    with pytest.raises(SizeError, match="N = 2097121"):
        SELECTORS["rnn_forward"].select(recurrence, gpu)
    assert SELECTORS["rnn_forward"].select(recurrence._replace(N=MANY), gpu).plan


@pytest.mark.skipif("cuda-emulated" not in map(str, targets("conv2d")), reason="the emulated kernels are not built")
class TestOperators:
    """If a size turns out to be too large only inside an operator, engine `torch` serves the call under "auto". The limits are
    lowered so that small calls exceed them."""

    @pytest.fixture(autouse=True)
    def low_limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "MOST", 6)
        real = select

        def cuda_for_auto(name: str, *rest: Any) -> Any:
            return real("cuda" if name == "auto" else name, *rest)

        for module in ("max_pool2d", "rnn", "conv2d"):
            monkeypatch.setattr(f"torch_unroll.ops.{module}.select", cuda_for_auto)

    def test_a_backward_pass(self) -> None:
        x = torch.randn(1, 2, 8, 4)
        window = ((2, 2), (2, 2), (0, 0), (1, 1))
        y, offsets = torch.ops.torch_unroll.max_pool2d_forward(x, *window, False, True, "torch")
        with recording() as recorded:
            dx = torch.ops.torch_unroll.max_pool2d_backward(y, offsets, (8, 4), *window, "auto")
        assert recorded.launches == []
        assert recorded.too_large is not None
        assert "H = 8" in recorded.too_large[0]
        torch.testing.assert_close(dx, torch.where(x == F.interpolate(y, scale_factor=2), x, 0))
        with pytest.raises(SizeError, match="H = 8"):
            torch.ops.torch_unroll.max_pool2d_backward(y, offsets, (8, 4), *window, "cuda")

    def test_a_plan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Conv2dProblem, "limits", lambda problem: "too many elements")
        planning.forget()
        x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 2, 2)
        geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "ieee")
        with recording() as recorded:
            y = torch.ops.torch_unroll.conv2d_fprop(x, w, None, *geometry, "auto", False)
        planning.forget()
        torch.testing.assert_close(y, F.conv2d(x, w))
        assert recorded.launches == []
        assert recorded.too_large is not None
        assert recorded.too_large[1] == "torch"
        with pytest.raises(SizeError, match="too many elements"):
            torch.ops.torch_unroll.conv2d_fprop(x, w, None, *geometry, "cuda", False)
        planning.forget()


def test_a_graph_with_symbolic_sizes_is_not_tied_to_a_limit() -> None:
    torch._dynamo.reset()
    calls: list[Callable[[Tensor], Any]] = [
        lambda x: tu.conv2d(x, torch.ones(1, 1, 2, 2), engine="torch"),
        lambda x: tu.max_pool2d(x, 2, engine="torch"),
        lambda x: tu.unfold(x, 2, engine="torch"),
    ]
    batch = torch.export.Dim("batch")
    for call in calls:

        class Model(torch.nn.Module):
            def forward(self, x: Tensor, call: Any = call) -> Any:
                return call(x)

        program = torch.export.export(Model(), (torch.randn(3, 1, 5, 5),), dynamic_shapes=({0: batch},))
        x = torch.randn(7, 1, 5, 5)
        torch.testing.assert_close(program.module()(x), call(x))
