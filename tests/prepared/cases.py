"""The calls that the tests of prepared calls make, each with torch's own call, and what the tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines.cuda import kernel_object
from torch_unroll.ops.registration import operations
from torch_unroll.ops.rnn_fused import RNN_FUSED
from torch_unroll.prepared.shortcut import Shortcuts

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A call: `run(*tensors)` by engine `cuda`, and `expected(*tensors)` by torch."""

    name: str
    operation: Any  # which holds the table of prepared calls
    run: Function
    expected: Function
    sizes: tuple[tuple[int, ...], ...]
    #: Whether all gradients are prepared as well: with an h0, that of w_hh is not.
    backward_is_prepared: bool = True

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Random tensors that require no gradient."""
        return [torch.randn(size, dtype=dtype) for size in self.sizes]

    def leaves(self) -> list[Tensor]:
        """Random tensors that require gradients."""
        return [tensor.requires_grad_() for tensor in self.tensors()]

    def __str__(self) -> str:
        return self.name


def _rnn(
    name: str, layers: int = 1, batch_first: bool = False, nonlinearity: str = "tanh", bias: bool = True, hx: bool = False
) -> Case:
    torchs = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}[nonlinearity]
    first = 2 if hx else 1

    def run(x: Tensor, *others: Tensor) -> Tensor:
        h0, weights = (others[0] if hx else None), others[first - 1 :]
        options: dict[str, Any] = {"nonlinearity": nonlinearity, "num_layers": layers, "batch_first": batch_first}
        return torch.cat([result.flatten() for result in tu.rnn(x, h0, weights, engine="cuda", **options)])

    def expected(x: Tensor, *others: Tensor) -> Tensor:
        samples = x.shape[0 if batch_first else 1]
        h0, weights = (others[0] if hx else x.new_zeros(layers, samples, 8)), others[first - 1 :]
        results = torchs(x, h0, list(weights), bias, layers, 0.0, False, False, batch_first)
        return torch.cat([result.flatten() for result in results])

    weights = ((8, 8), (8, 8), (8,), (8,)) if bias else ((8, 8), (8, 8))
    states = ((layers, 4, 8),) if hx else ()
    return Case(name, RNN_FUSED, run, expected, ((4, 4, 8), *states, *weights * layers), not hx)


CASES = [
    Case(
        "conv2d",
        operations["conv2d_fprop"],
        lambda x, w, b: tu.conv2d(x, w, b, padding=1, engine="cuda"),
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        ((2, 4, 4, 4), (4, 4, 3, 3), (4,)),
    ),
    Case(
        "max_pool2d",
        operations["max_pool2d_forward"],
        lambda x: tu.max_pool2d(x, 2, engine="cuda"),
        lambda x: F.max_pool2d(x, 2),
        ((2, 4, 4, 4),),
    ),
    Case(
        "rnn_cell",
        operations["rnn_cell_forward"],
        lambda *tensors: tu.rnn_cell(*tensors, engine="cuda"),
        torch.rnn_tanh_cell,
        ((4, 8), (4, 8), (8, 8), (8, 8), (8,), (8,)),
    ),
    _rnn("rnn"),
]

#: More kinds of recurrent networks.
NETWORKS = [
    _rnn("rnn of two layers", layers=2),
    _rnn("rnn with batch_first", layers=2, batch_first=True),
    _rnn("rnn with relu", nonlinearity="relu"),
    _rnn("rnn without biases", bias=False),
    _rnn("rnn with h0", layers=2, hx=True),
]

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_equal(results: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Asserts that tensors equal torch's but for rounding."""
    torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance, check_stride=False)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors as other leaves, with the same strides and alignment."""
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]


def gradients(function: Function, tensors: Sequence[Tensor], of_result: Tensor | None = None) -> list[Tensor | None]:
    """The gradients of all tensors that require one, for a gradient of the result."""
    leaves = copies(tensors)
    result = function(*leaves)
    of_result = torch.cos(torch.arange(result.numel(), dtype=result.dtype)).view_as(result) if of_result is None else of_result
    return list(torch.autograd.grad(result, [leaf for leaf in leaves if leaf.requires_grad], of_result, allow_unused=True))


def prepare(case: Case, tensors: Sequence[Tensor] | None = None) -> None:
    """Makes calls of a case, and their backward, until all are prepared, with and without gradients."""
    for _ in range(5):
        gradients(case.run, case.leaves() if tensors is None else tensors)
        case.run(*(case.tensors() if tensors is None else [tensor.detach() for tensor in tensors]))
    with no_single_launch():
        case.run(*(case.leaves() if tensors is None else copies(tensors)))
        if case.backward_is_prepared:
            gradients(case.run, case.leaves() if tensors is None else tensors)


def states(case: Case) -> list[str]:
    """What the table of the operator says of each call that it knows."""
    return [entry.describe() for entries in case.operation.table._entries.values() for entry in entries]


@contextmanager
def no_single_launch() -> Iterator[None]:
    """Lets every launch fail that is not part of a prepared call."""

    def launch(*_: Any) -> int:
        raise AssertionError("a kernel was launched that is not part of a prepared call")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_object("cpu").library, "torch_unroll_launch", launch)
        yield


@contextmanager
def no_prepared_launch() -> Iterator[None]:
    """Lets every shortcut fail that serves a call."""

    take = Shortcuts.take

    def checked(known: Shortcuts, *arguments: Any) -> Any:
        results = take(known, *arguments)
        assert results is None, "a shortcut serves the call"
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shortcuts, "take", checked)
        yield


def misaligned(tensor: Tensor) -> Tensor:
    """The same values at an address that is no multiple of 16 bytes."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape).detach()


def transposed(tensor: Tensor) -> Tensor:
    """The same values with other strides."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1).detach()


def expanded(tensor: Tensor) -> Tensor:
    """The first slice, repeated by a stride of 0."""
    return tensor[:1].expand_as(tensor).detach()
