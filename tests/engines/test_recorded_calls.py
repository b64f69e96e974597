"""A program that is recorded without gradients can be trained later, and run with other extents.

Only make_fx with real tensors fixes the extents.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")


class _Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 5, **options)

    def forward(self, x: Tensor) -> Tensor:
        output, h_n = self.rnn(x)
        return output.sum(1 if not self.rnn.batch_first else 0) + h_n.sum()


class _OverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return tu.max_over_time(x)


#: name -> the model, the shape of its input, the dimension of the batch, and how torch's operators compute the same.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, Callable[[nn.Module, Tensor], Tensor]]] = {
    "pooling": (lambda: nn.Sequential(nn.MaxPool2d(2)), (2, 3, 6, 6), 0, nn.Module.__call__),
    "network": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 2, 2)),
        (2, 8, 8, 8),
        0,
        nn.Module.__call__,
    ),
    "recurrence": (_Recurrent, (3, 2, 4), 1, nn.Module.__call__),
    "both directions": (lambda: _Recurrent(bidirectional=True, num_layers=2, batch_first=True), (2, 3, 4), 0, nn.Module.__call__),
    "over time": (_OverTime, (4, 2, 3), 1, lambda _, x: x.amax(0)),
}


def _export(model: nn.Module, x: Tensor, axis: int) -> Callable[[Tensor], Any]:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({axis: Dim("N", min=1, max=64)},)), buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


RECORDERS: dict[str, Callable[[nn.Module, Tensor, int], Callable[[Tensor], Any]]] = {
    "trace": lambda model, x, axis: torch.jit.trace(model, x),
    "export": _export,
    "make_fx": lambda model, x, axis: make_fx(model)(x),
    "make_fx, symbolic": lambda model, x, axis: make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["no_grad", "grad"])
@pytest.mark.parametrize("recorder", RECORDERS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_can_be_trained(target: Target, name: str, recorder: str, gradients: bool, dtype: torch.dtype) -> None:
    build, shape, axis, torchs = MODELS[name]
    model = build().to(dtype)
    other = list(shape)
    other[axis] = shape[axis] if recorder == "make_fx" else 5  # make_fx with real tensors records their extents
    x = torch.randn(other, dtype=dtype, requires_grad=True)
    expected = torchs(model, x)
    (expected_dx,) = torch.autograd.grad(expected.float().square().sum(), x)
    tu.replace(model)
    with tu.use_engine(target.engine):
        with torch.set_grad_enabled(gradients):
            recorded = RECORDERS[recorder](model, torch.randn(shape, dtype=dtype), axis)
        y = recorded(x)
        (dx,) = torch.autograd.grad(y.float().square().sum(), x)
    for ours, theirs in ((y, expected), (dx, expected_dx)):
        assert ours.shape == theirs.shape
        distance = (ours - theirs).double().norm() / theirs.double().norm()
        assert distance < (3e-2 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiled_inference_keeps_no_offsets(target: Target) -> None:
    """torch.compile guards on whether gradients are wanted: without them no offsets are kept, and with them it compiles again."""
    torch._dynamo.reset()
    backend = torch._dynamo.testing.EagerAndRecordGraphs()
    pooling = torch.compile(lambda x: tu.max_pool2d(x, 2, engine=target.engine), backend=backend, fullgraph=True)
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        pooling(x)
    (gradient,) = torch.autograd.grad(pooling(x.requires_grad_()).sum(), x)
    assert int(gradient.sum()) == 8
    offsets = [node.args[6] for graph in backend.graphs for node in graph.graph.nodes if "max_pool2d_forward" in str(node.target)]
    assert offsets == [False, True]


@pytest.mark.parametrize("recorder", ["trace", pytest.param("make_fx, symbolic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_recorded_modules_refuse_inputs_that_do_not_fit(target: Target, recorder: str) -> None:
    x, h = torch.randn(3, 2, 4), torch.randn(1, 2, 5)
    image = torch.randn(2, 4, 6, 6)
    cases: list[tuple[nn.Module, tuple[Tensor, ...], list[tuple[Tensor, ...]]]] = [
        (
            tu.nn.RNN(4, 5, engine=target.engine),
            (x, h),
            [
                (torch.randn(3, 100, 4), h),
                (x, torch.randn(1, 100, 5)),
                (x, h.double()),
                (x.double(), h),
                (x, h.to("meta")),
                (x, torch.randn(1, 2, 6)),
                (torch.randn(3, 2, 5), h),
            ],
        ),
        (tu.nn.RNNCell(4, 5, engine=target.engine), (x[0], h[0]), [(torch.randn(100, 4), h[0]), (x[0], h[0].double())]),
        (
            tu.nn.Conv2d(4, 4, 3, padding=1, engine=target.engine),
            (image,),
            [(image[:, :3],), (image.double(),), (image.to("meta"),), (image[0, 0],), (image.to_sparse(),)],
        ),
        (tu.nn.MaxPool2d(2, engine=target.engine), (image,), [(image[0, 0],), (image.to_sparse(),), (image.long(),)]),
    ]
    for module, inputs, wrong in cases:
        recorded = torch.jit.trace(module, inputs) if recorder == "trace" else _graph(module, *inputs)
        torch.testing.assert_close(recorded(*inputs), module(*inputs))
        for values in wrong:
            with pytest.raises(RuntimeError):
                recorded(*values)


def _graph(module: nn.Module, *inputs: Tensor) -> Callable[..., Any]:
    return make_fx(module, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
