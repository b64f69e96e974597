"""torch.func's transforms of ops that are compiled by torch.compile, called as operators, exported or traced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import torch_unroll as tu
from tests.programs.operations import OPERATIONS
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
Function = Callable[..., Any]


def _loss(function: Function) -> Function:
    return lambda *tensors: function(*tensors).square().sum()


def _every(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


def _batch(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.stack([tensor, 0.5 * tensor, -tensor]) for tensor in tensors]


def _first_batched(tensors: list[Tensor]) -> list[Tensor]:
    return [*_batch(tensors[:1]), *tensors[1:]]


def _of_each_sample(function: Function, tensors: list[Tensor]) -> Function:
    return vmap(grad(_loss(function), _every(tensors)), (0, *(None for _ in tensors[1:])))


def _pushed(function: Function, tensors: list[Tensor]) -> Function:
    return lambda *values: jvp(function, values, tuple(value.cos() for value in values))


def _pulled(function: Function, tensors: list[Tensor]) -> Function:
    def run(*values: Tensor) -> Any:
        output, pull = vjp(function, *values)
        return pull(output.cos())

    return run


def _twice(function: Function, tensors: list[Tensor]) -> Function:
    return grad(_loss(grad(_loss(function))), _every(tensors))


#: name -> what transforms a function, and what makes the arguments of the transformed function from the op's tensors.
WAYS: dict[str, tuple[Callable[[Function, list[Tensor]], Function], Callable[[list[Tensor]], list[Tensor]]]] = {
    "grad": (lambda function, tensors: grad(_loss(function), _every(tensors)), list),
    "vmap": (lambda function, tensors: vmap(function), _batch),
    "vmap of grad": (lambda function, tensors: vmap(grad(_loss(function), _every(tensors))), _batch),
    "of each sample": (_of_each_sample, _first_batched),
    "grad of vmap": (lambda function, tensors: grad(_loss(vmap(function)), _every(tensors)), _batch),
    "grad of grad": (_twice, list),
    "jacrev": (lambda function, tensors: jacrev(function, _every(tensors)), list),
    "jacfwd": (lambda function, tensors: jacfwd(function, _every(tensors)), list),
    "jvp": (_pushed, list),
    "vjp": (_pulled, list),
    "hessian": (lambda function, tensors: hessian(_loss(function)), list),
}

#: Op -> the transform that the quick suite applies to it.
_QUICK = {
    "conv2d": "of each sample",
    "conv_transpose2d": "vmap of grad",
    "unfold": "vjp",
    "fold": "grad",
    "max_pool2d": "of each sample",
    "max_over_time": "jvp",
    "rnn": "of each sample",
    "rnn_cell": "grad of vmap",
}


#: The ops for which the quick suite also differentiates the transformed function; for the others, it only checks results.
_TRAINED = ("conv2d", "rnn")


def _cases() -> list[Any]:
    def marks(target: Target, name: str, way: str, train: bool) -> list[pytest.MarkDecorator]:
        is_quick = target.engine == "torch" and _QUICK.get(name) == way and train == (name in _TRAINED)
        return [] if is_quick else [pytest.mark.slow]

    return [
        pytest.param(*case, id="-".join(map(str, case)), marks=marks(*case))
        for case in itertools.product(TARGETS, OPERATIONS, WAYS, (False, True))
    ]


def _trained(function: Function, tensors: list[Tensor]) -> list[Tensor | None]:
    """The results of a transform, and the gradients of the sum of their squares."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    results = tree_leaves(function(*leaves))
    loss = torch.stack([result.square().sum() for result in results if result.requires_grad]).sum()
    return [*results, *torch.autograd.grad(loss, leaves, allow_unused=True)]


def _compiled_as_eager(function: Function, tensors: list[Tensor], backend: str, train: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    if not train:
        torch.testing.assert_close(tree_leaves(compiled(*tensors)), tree_leaves(function(*tensors)))
        return
    results, expected = _trained(compiled, tensors), _trained(function, tensors)
    for result, wanted in zip(results, expected, strict=True):
        if wanted is None:  # a graph may return zeros in place of a gradient that is None
            assert result is None or not result.any()
        else:
            torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize(("target", "name", "way", "train"), _cases())
def test_compiled(target: Target, name: str, way: str, train: bool) -> None:
    operation, (transform, draw) = OPERATIONS[name], WAYS[way]
    tensors = operation.tensors(device=target.device)
    _compiled_as_eager(transform(operation.on(target.engine), tensors), draw(tensors), "aot_eager", train)


@pytest.mark.parametrize("backend", ["inductor", "eager"])
@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "rnn", "unfold"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.slow
def test_compiled_by_other_backends(target: Target, name: str, backend: str) -> None:
    operation = OPERATIONS[name]
    tensors = operation.tensors(torch.float32, target.device)
    _compiled_as_eager(_of_each_sample(operation.on(target.engine), tensors), _first_batched(tensors), backend, train=True)


class _Network(nn.Module):
    """A convolution, a pooling, and a recurrence over the rows."""

    def __init__(self, engine: str):
        super().__init__()
        self.convolution = tu.nn.Conv2d(1, 2, 3, padding=1, engine=engine)
        self.pooling = tu.nn.MaxPool2d(2, engine=engine)
        self.recurrence = tu.nn.RNN(6, 3, batch_first=True, engine=engine)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.pooling(self.convolution(x).relu()).permute(0, 2, 1, 3).flatten(2)
        return self.recurrence(rows)[1][0]


def _per_sample_gradients(model: nn.Module) -> Function:
    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x.unsqueeze(0),)).square().sum()

    return vmap(grad(loss), (None, 0))


@pytest.mark.slow
@pytest.mark.parametrize("lowered", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_per_sample_gradients_of_a_network_of_any_batch(target: Target, lowered: bool) -> None:
    torch._dynamo.reset()
    model = _Network(target.engine).to(target.device)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    compiled = torch.compile(_per_sample_gradients(model), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 5):
        x = torch.randn(batch, 1, 6, 6, device=target.device)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=lowered):
            gradients, expected = compiled(parameters, x), _per_sample_gradients(model)(parameters, x)
        for name, wanted in expected.items():
            distance = (gradients[name] - wanted).norm() / wanted.norm()
            assert distance < (3e-2 if lowered else 1e-5), name


def _operator(x: Tensor, w: Tensor) -> Tensor:
    geometry = ((1, 1), (1, 1, 1, 1), (1, 1), 1, "conv")
    return torch.ops.torch_unroll.conv2d_fprop(x, w, None, *geometry, "torch", False)


class _Convolution(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return tu.conv2d(x, w, padding=1, engine="torch")


#: A convolution in forms that contain the operator instead of the function that calls it.
FORMS: dict[str, Callable[[Tensor, Tensor], Function]] = {
    "operator": lambda *tensors: _operator,
    "trace": lambda *tensors: torch.jit.trace(_Convolution(), tensors),
    "export": lambda *tensors: torch.export.export(_Convolution(), tensors).module(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["operator", "trace", pytest.param("export", marks=pytest.mark.slow)])
def test_transforms_of_programs(form: str, way: str) -> None:
    tensors = [torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)]
    transform, draw = WAYS[way]
    program = transform(FORMS[form](*tensors), tensors)
    expected = transform(lambda x, w: torch.nn.functional.conv2d(x, w, padding=1), tensors)
    torch.testing.assert_close(tree_leaves(program(*draw(tensors))), tree_leaves(expected(*draw(tensors))))


@pytest.mark.parametrize("by", range(2))
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_pullback_may_run_after_its_transform(name: str, target: Target, by: int) -> None:
    """A pullback can run after its transform has ended, although its saved tensors are wrappers of that transform's level."""
    operation = OPERATIONS[name]
    tensors = operation.tensors(device=target.device)
    if by >= len(tensors):
        pytest.skip("an op of one tensor")

    def function(value: Tensor, ours: bool = True) -> Tensor:
        values = [*tensors[:by], value, *tensors[by + 1 :]]
        return operation.on(target.engine)(*values) if ours else operation.torchs(*values)

    output, pull = vjp(function, tensors[by])
    leaf = tensors[by].clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf, ours=False), leaf, output.cos())
    torch.testing.assert_close(pull(output.cos())[0], expected)
