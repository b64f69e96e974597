"""W_hh as programs have it: one tensor or one for each direction, in any layout. A pass makes one launch and no copy of W_hh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rnn.test_rnn_kernels import LAUNCHER, MATHS, VARIANTS, Case, Resized
from torch_unroll.engines import load
from torch_unroll.engines.compiled import rnn
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import RecurrentWeights, RnnOptions
from torch_unroll.kernels import planning
from torch_unroll.testing import assert_exact

pytestmark = pytest.mark.usefixtures("device")
OPTIONS = RnnOptions(None, None, "tanh", "ieee")


def _within(w: Tensor, rows: slice, columns: slice, size: int) -> Tensor:
    """Returns a copy of w (D, H, H) that is a part of a larger tensor, whose other elements are NaN."""
    larger = w.new_full((len(w), size, size), torch.nan)
    part = larger[:, rows, columns]
    part.copy_(w)
    return part


def _with_pitch(w: Tensor) -> Tensor:
    return _within(w, slice(w.shape[-1]), slice(w.shape[-1]), w.shape[-1] + 16)


def _unaligned(w: Tensor) -> Tensor:
    return _within(w, slice(1, None), slice(1, None), w.shape[-1] + 1)


def _every_other(w: Tensor) -> Tensor:
    return _within(w, slice(None, None, 2), slice(None, None, 2), 2 * w.shape[-1])


def _transposed(w: Tensor) -> Tensor:
    return w.mT.contiguous().mT


def _list(w: Tensor) -> list[Tensor]:
    return [part.clone() for part in w]


def _unequal_list(w: Tensor) -> tuple[Tensor, ...]:
    return (*w[:1].clone(), *_transposed(w)[1:])


LAYOUTS: tuple[Callable[[Tensor], RecurrentWeights], ...] = (
    _with_pitch,
    _unaligned,
    _every_other,
    _transposed,
    _list,
    _unequal_list,
)


def _both_passes(case: Case, w: RecurrentWeights, options: RnnOptions) -> tuple[Tensor, ...]:
    """Returns h, h_n, dz and dh0."""
    h_n = torch.empty_like(case.h0)
    h = rnn.rnn_forward(LAUNCHER, case.z, w, case.h0, options, h_n)
    dz, dh0 = rnn.rnn_backward(LAUNCHER, case.dh, h, w, case.h0, options, case.h0)
    assert dh0 is not None
    return h, h_n, dz, dh0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "precision"), MATHS)
@pytest.mark.parametrize("D", [1, 2])
def test_layouts_of_w(
    variant: str, D: int, dtype: torch.dtype, precision: str, layout: Callable[[Tensor], RecurrentWeights]
) -> None:
    options = OPTIONS._replace(precision=precision)
    for H in (48, 33):
        if H % 8 and variant == "grid_exchange":  # refuses rows that do not start on 16 bytes
            continue
        case = Case(2, 3, H, D, dtype)
        with planning.force("rnn", variant):
            expected = _both_passes(case, case.w, options)
            for one, other in zip(_both_passes(case, layout(case.w), options), expected, strict=True):
                assert_exact(one, other)


@pytest.mark.parametrize("variant", ["single_block", "cluster", "grid_exchange"])
@pytest.mark.parametrize("transposed", [True, False])
def test_layouts_of_w_in_shared_memory(variant: str, transposed: bool) -> None:
    """H is so large that a part of W is in shared memory, whichever way it is read."""
    H = 112 if variant == "single_block" else 320
    case = Case(1, 2, H, 1, torch.float32)
    case.w = _transposed(case.w) if transposed else case.w
    with planning.force("rnn", variant):
        case.check("tanh", "ieee", Resized(5))


@pytest.mark.parametrize("engine", ["torch", "cuda"])
def test_engines_take_one_tensor_for_each_direction(engine: str) -> None:
    case, chosen = Case(3, 3, 16, 2, torch.float32), load(engine)
    h = chosen.rnn_forward(case.z, _list(case.w), case.h0, OPTIONS)
    assert_exact(h, chosen.rnn_forward(case.z, case.w, case.h0, OPTIONS))
    actual = chosen.rnn_backward(case.dh, h, tuple(_list(case.w)), None, OPTIONS)
    for one, other in zip(actual, chosen.rnn_backward(case.dh, h, case.w, None, OPTIONS), strict=True):
        assert_exact(one, other)


class Kernels(TorchDispatchMode):
    """Notes the operators of torch that compute something, which is all but allocations and views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        allocates = func.overloadpacket.__name__ in ("empty", "empty_like", "new_empty")
        if not func.is_view and not allocates:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_kernels_are_noted() -> None:
    with Kernels() as noted:
        torch.zeros(2).view(2, 1).mT.add_(torch.empty(1, 2))
    assert noted.names == ["zeros", "add_"]


@pytest.mark.parametrize("layout", [_list, _unequal_list, _unaligned])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lengths", [None, [3, 0, 2, 1, 3]])
@pytest.mark.parametrize("with_state", [True, False])
def test_a_pass_is_one_launch(
    variant: str, lengths: list[int] | None, with_state: bool, layout: Callable[[Tensor], RecurrentWeights]
) -> None:
    """`grid_exchange` also fills its output, and `step` makes a launch for each step and copies W where it has to."""
    T, D, engine = 3, 2, load("cuda")
    case = Case(T, 5, 32, D, torch.bfloat16, lengths)
    w, state = layout(case.w), case.h0 if with_state else None
    h_n, options = torch.empty_like(case.h0), OPTIONS._replace(lengths=case.lengths_tensor)
    with planning.force("rnn", variant):
        with recording() as forward, Kernels() as in_forward:
            h = engine.rnn_forward(case.z, w, state, options, h_n)
        with recording() as backward, Kernels() as in_backward:
            engine.rnn_backward(case.dh, h, w, state, options, state, with_state)
    filled = ["fill_"] if variant == "grid_exchange" else []
    copied = ["copy_"] * D if variant == "step" else []
    copied_forward = copied if layout is not _list else []
    assert in_forward.names == filled + copied_forward
    assert in_backward.names == filled + copied
    assert bool(forward.workspace_bytes) == bool(copied_forward)
    assert bool(backward.workspace_bytes) == bool(copied)
    assert len(forward.launches) == (T if variant == "step" else 1)
    assert len(backward.launches) == (T + with_state if variant == "step" else 1)
