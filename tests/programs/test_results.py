"""Arguments that are not tensors are refused by name; results are not views of internal tensors, so callers may change them in
place. (Backward of a recurrence with a nonlinearity reads the results, so they must not be changed before backward runs.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import torch_unroll as tu
from torch_unroll.testing import targets
from torch_unroll.testing.targets import Target

W, B = torch.randn(4, 3, 3, 3), torch.randn(4)
CELL = (torch.randn(5, 3), torch.randn(5, 5))

#: Calls with one tensor, and its shape.
CALLS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "conv2d": (lambda x, **options: tu.conv2d(x, W, B, **options), (2, 3, 6, 5)),
    "conv2d, unbatched": (lambda x, **options: tu.conv2d(x, W, None, 2, **options), (3, 6, 5)),
    "conv2d, same": (lambda x, **options: tu.conv2d(x, W, B, 1, "same", **options), (3, 6, 5)),
    "conv_transpose2d": (lambda x, **options: tu.conv_transpose2d(x, W, None, 2, **options), (2, 4, 3, 3)),
    "conv_transpose2d, bias": (lambda x, **options: tu.conv_transpose2d(x, W, B[:3], **options), (4, 3, 3)),
    "unfold": (lambda x, **options: tu.unfold(x, 2, **options), (2, 3, 4, 5)),
    "unfold, unbatched": (lambda x, **options: tu.unfold(x, (2, 3), 1, 1, **options), (3, 4, 5)),
    "fold": (lambda x, **options: tu.fold(x, 4, 2, **options), (2, 12, 9)),
    "fold, unbatched": (lambda x, **options: tu.fold(x, (4, 5), 2, **options), (12, 12)),
    "max_pool2d": (lambda x, **options: tu.max_pool2d(x, 2, **options), (2, 3, 4, 6)),
    "max_pool2d, unbatched": (lambda x, **options: tu.max_pool2d(x, 3, 1, **options), (3, 4, 6)),
    "max_pool2d, indices": (lambda x, **options: tu.max_pool2d(x, 2, return_indices=True, **options), (3, 4, 6)),
    "max_over_time": (lambda x, **options: tu.max_over_time(x, **options), (4, 2, 3)),
    "rnn_cell": (lambda x, **options: tu.rnn_cell(x, torch.ones(2, 5), *CELL, **options), (2, 3)),
    "rnn": (lambda x, **options: tu.rnn(x, None, CELL, nonlinearity="identity", **options), (4, 2, 3)),
}
ENGINES = pytest.mark.parametrize("target", [target for target in targets("conv2d") if target.device.type == "cpu"], ids=str)


def _results(name: str, target: Target, requires_grad: bool) -> tuple[Tensor, list[Tensor]]:
    call, shape = CALLS[name]
    x = torch.randn(shape, requires_grad=requires_grad)
    output = call(x, engine=target.engine)
    return x, list(output) if isinstance(output, tuple) else [output]


@ENGINES
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_no_result_is_a_view(name: str, requires_grad: bool, target: Target) -> None:
    for result in _results(name, target, requires_grad)[1]:
        assert not result._is_view()
        assert result.untyped_storage().nbytes() == result.nbytes
        result.detach_()


@ENGINES
@pytest.mark.parametrize("name", CALLS)
def test_results_may_be_changed_in_place_before_backward(name: str, target: Target) -> None:
    torch.manual_seed(0)
    x, (expected, *_) = _results(name, target, True)
    expected_gradient = torch.autograd.grad((3 * expected).relu().sum(), x)[0]
    torch.manual_seed(0)
    x, (result, *_) = _results(name, target, True)
    if name == "rnn_cell":
        result = result.clone()  # the slope of tanh is computed from the returned tensor, which torch's cells save as well
    result[..., 0] = result[..., 0].clone()
    result.mul_(3).relu_()
    torch.testing.assert_close(torch.autograd.grad(result.sum(), x)[0], expected_gradient)


_X, _SEQUENCE = torch.randn(2, 3, 6, 5), torch.randn(4, 2, 3)
#: Calls in which a tensor is missing or replaced by another object.
LACKING: dict[str, Callable[..., Any]] = {
    "conv2d, input": lambda value, **options: tu.conv2d(value, W, **options),
    "conv2d, weight": lambda value, **options: tu.conv2d(_X, value, **options),
    "conv_transpose2d, weight": lambda value, **options: tu.conv_transpose2d(_X, value, **options),
    "unfold": lambda value, **options: tu.unfold(value, 2, **options),
    "fold": lambda value, **options: tu.fold(value, 4, 2, **options),
    "max_pool2d": lambda value, **options: tu.max_pool2d(value, 2, **options),
    "max_over_time": lambda value, **options: tu.max_over_time(value, **options),
    "rnn, input": lambda value, **options: tu.rnn(value, None, CELL, **options),
    "rnn, weight": lambda value, **options: tu.rnn(_SEQUENCE, None, [CELL[0], value], **options),
    "rnn_cell, h": lambda value, **options: tu.rnn_cell(_SEQUENCE[0], value, *CELL, **options),
}


@pytest.mark.parametrize("engine", [None, "torch"])
@pytest.mark.parametrize("value", [None, 3, [[1.0]], "x"], ids=str)
@pytest.mark.parametrize("name", LACKING)
def test_an_argument_that_is_no_tensor_is_refused_by_name(name: str, value: Any, engine: str | None) -> None:
    with pytest.raises(TypeError, match=r"^(input|weights?|x|h): expected a Tensor, got \w+$"):
        LACKING[name](value, engine=engine)


@pytest.mark.parametrize("tracing_mode", ["real", "symbolic"])
@pytest.mark.parametrize("name", [name for name in CALLS if "unbatched" in name or "indices" in name])
def test_unbatched_calls_are_recorded(name: str, tracing_mode: str) -> None:
    """make_fx can record an unbatched call together with its gradient, since no tensor's shape is changed in place."""
    call, shape = CALLS[name]

    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        output = call(leaf, engine="torch")
        return torch.autograd.grad((output[0] if isinstance(output, tuple) else output).square().sum(), leaf)[0]

    x = torch.randn(shape)
    graph = make_fx(gradient, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(x)
    torch.testing.assert_close(graph(2 * x), gradient(2 * x))
