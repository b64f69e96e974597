"""Recurrence on engine `numba`, in the simulator (run by test_in_simulator.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import torch_unroll as tu
from torch_unroll.engines import load, use_engine
from torch_unroll.engines.interface import DTYPES, NONLINEARITIES, Engine, RnnOptions
from torch_unroll.engines.numba import rnn as host
from torch_unroll.kernels.numba import rnn as kernels
from torch_unroll.testing import assert_as_accurate, assert_exact

MINE, REFERENCE = load("numba"), load("torch")
OPTIONS = RnnOptions(None, None, "tanh", "ieee")


@pytest.fixture(params=["single_block", "step"])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with host.force(request.param):
        yield request.param


def _tensors(dtype: torch.dtype, D: int = 2, T: int = 3, N: int = 3, H: int = 5) -> list[Tensor]:
    """Returns random z, w_hh, h0 and dh."""
    shapes = ((T, N, D * H), (D, H, H), (D, N, H), (T, N, D * H))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _check(lengths: Tensor | None, sizes: tuple[int, ...] | None, nonlinearity: str, tensors: list[Tensor]) -> None:
    """Compares both passes with engine `torch`, in float64 and in the dtype itself."""
    z, w, h0, dh = tensors
    options = RnnOptions(lengths, sizes, nonlinearity, "ieee")
    h = MINE.rnn_forward(z, w, h0, options)
    plain = REFERENCE.rnn_forward(z, w, h0, options)
    assert h.stride() == plain.stride()
    assert_as_accurate(h, plain, REFERENCE.rnn_forward(z.double(), w.double(), h0.double(), options), "h")
    wide = [tensor.double() for tensor in (dh, h, w, h0)]
    results = (
        MINE.rnn_backward(dh, h, w, h0, options),
        REFERENCE.rnn_backward(dh, h, w, h0, options),
        REFERENCE.rnn_backward(*wide, options),
    )
    for name, mine, its, exact in zip(("dz", "dh0"), *results, strict=True):
        assert_as_accurate(mine, its, exact, name)


def _run(
    engine: Engine, dtype: torch.dtype, options: RnnOptions, tensors: list[Tensor], wanted: tuple[bool, ...]
) -> list[Tensor]:
    """Returns h, h_n, dz and dh0 of an engine, of which `wanted` leaves out h_n or dh0, and h0, dh or dh_n of the inputs."""
    z, w, h0, dh = (tensor.to(dtype) for tensor in tensors)
    with_h0, with_h_n, with_dh, with_dh_n, with_dh0 = wanted
    h_n = torch.full_like(h0, torch.nan) if with_h_n else None
    h = engine.rnn_forward(z, w, h0 if with_h0 else None, options, h_n)
    dh_n = h0.flip(-1) if with_dh_n else None
    dz, dh0 = engine.rnn_backward(dh if with_dh else None, h, w, None, options, dh_n, with_dh0)
    assert (dh0 is not None) == with_dh0
    return [tensor for tensor in (h, h_n, dz, dh0) if tensor is not None]


@pytest.mark.parametrize(
    "wanted", [(True,) * 5, (False,) * 5, (True, False) * 2 + (True,), (False, True) * 2 + (False,)], ids=str
)
@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
def test_states_that_are_left_out(variant: str, layout: str, wanted: tuple[bool, ...]) -> None:
    z, w, h0, dh = _tensors(torch.float32)
    options = OPTIONS._replace(lengths=torch.tensor([2, 0, 9]) if layout == "lengths" else None)
    if layout == "packed":
        options, z, dh = options._replace(batch_sizes=(3, 2, 1)), z.flatten(0, 1)[:6], dh.flatten(0, 1)[:6]
    results = (
        _run(engine, dtype, options, [z, w, h0, dh], wanted)
        for engine, dtype in ((MINE, torch.float32), (REFERENCE, torch.float32), (REFERENCE, torch.float64))
    )
    for mine, its, exact in zip(*results, strict=True):
        assert_as_accurate(mine, its, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_nonlinearities(variant: str, nonlinearity: str, dtype: torch.dtype) -> None:
    _check(None, None, nonlinearity, _tensors(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(variant: str, dtype: torch.dtype) -> None:
    """One sample has no steps, and one length is above T."""
    _check(torch.tensor([2, 0, 9], dtype=torch.int32), None, "tanh", _tensors(dtype))


def test_packed(variant: str) -> None:
    z, w, h0, dh = _tensors(torch.float32)
    _check(None, (3, 2, 1), "tanh", [z.flatten(0, 1)[:6], w, h0, dh.flatten(0, 1)[:6]])


def test_layouts(variant: str) -> None:
    z, w, h0, dh = _tensors(torch.float64)
    batch_first = z.transpose(0, 1).contiguous().transpose(0, 1)
    wider = torch.randn(3, 3, 14, dtype=torch.float64)[..., 2:12]
    for laid_out in (batch_first, wider, z[:1].expand(3, 3, 10), z.mT.contiguous().mT):
        _check(None, None, "tanh", [laid_out, w.mT, h0, dh[:, :1].expand(3, 3, 10)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell(dtype: torch.dtype) -> None:
    x, h, w_ih, w_hh, b_ih, dh = (torch.randn(shape).to(dtype) for shape in ((3, 5), (3, 3), (3, 5), (3, 3), (3,), (3, 3)))
    forward = (x, h, w_ih, w_hh, b_ih, None)
    wide = [tensor if tensor is None else tensor.double() for tensor in forward]
    arguments = ("sigmoid", "ieee")
    h_next = MINE.rnn_cell_forward(*forward, *arguments)
    assert_as_accurate(
        h_next, REFERENCE.rnn_cell_forward(*forward, *arguments), REFERENCE.rnn_cell_forward(*wide, *arguments), "h_next"
    )
    backward = (dh, h_next, w_ih, w_hh)
    results = (
        MINE.rnn_cell_backward(*backward, *arguments),
        REFERENCE.rnn_cell_backward(*backward, *arguments),
        REFERENCE.rnn_cell_backward(*(tensor.double() for tensor in backward), *arguments),
    )
    for name, mine, its, exact in zip(("dz", "dx", "dh"), *results, strict=True):
        assert_as_accurate(mine, its, exact, name)


def test_the_module_against_torchs() -> None:
    torchs, mine = torch.nn.RNN(2, 3, 2, bidirectional=True).double(), tu.nn.RNN(2, 3, 2, bidirectional=True).double()
    mine.load_state_dict(torchs.state_dict())
    x = pack_padded_sequence(torch.randn(3, 2, 2, dtype=torch.float64), torch.tensor([3, 2]))
    with use_engine("numba"):
        output, h_n = mine(x)
        gradients = torch.autograd.grad(output.data.sum() + h_n.square().sum(), list(mine.parameters()))
    expected, its = torchs(x)
    torch.testing.assert_close(output.data, expected.data)
    torch.testing.assert_close(h_n, its)
    for one, other in zip(
        gradients, torch.autograd.grad(expected.data.sum() + its.square().sum(), list(torchs.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_derivatives_of_every_order() -> None:
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 1, 2), (1, 1, 2), (2, 2), (2, 2))]

    def call(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor) -> Tensor:
        return tu.rnn(x, h0, [w_ih, w_hh], engine="numba")[0]

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def test_compiles_without_graph_breaks_and_under_autocast() -> None:
    module = tu.nn.RNN(2, 3)
    x = torch.randn(2, 1, 2)
    with use_engine("numba"):
        expected = module(x)[0]
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            lowered = tu.rnn_cell(x[0], torch.zeros(1, 3), torch.randn(3, 2), torch.randn(3, 3))
    torch.testing.assert_close(compiled, expected)
    assert lowered.dtype == torch.bfloat16


def test_empty_batch_and_the_same_bits_twice(variant: str) -> None:
    z, w, h0, dh = _tensors(torch.float32)
    assert_exact(MINE.rnn_forward(z, w, h0, OPTIONS), MINE.rnn_forward(z, w, h0, OPTIONS))
    h = MINE.rnn_forward(z[:, :0], w, h0[:, :0], OPTIONS)
    dz, dh0 = MINE.rnn_backward(dh[:, :0], h, w, h0[:, :0], OPTIONS)
    assert dh0 is not None
    assert (h.shape, dz.shape, dh0.shape) == ((3, 0, 10), (3, 0, 10), (2, 0, 5))


def test_not_a_number_stays_with_its_sample(variant: str) -> None:
    z, w, h0, _ = _tensors(torch.float32)
    z[0, 1, 0] = torch.nan
    for nonlinearity in NONLINEARITIES:
        h = MINE.rnn_forward(z, w, h0, OPTIONS._replace(nonlinearity=nonlinearity))
        assert h[0, 1, 0].isnan()
        assert not h[:, 0].isnan().any()


def test_warmup_calls_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(host, "launch", lambda kernel, *_: launched.append(kernel))
    tu.warmup("rnn", dtype=torch.bfloat16, device="cpu", engine="numba")
    assert all(kernel in launched for name, kernel in vars(kernels).items() if name.endswith("_kernel"))
