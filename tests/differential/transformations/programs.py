"""Models that are compiled, exported or traced; most are then run on a batch of another size."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export, load, save
from torch.fx.experimental.proxy_tensor import make_fx

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, listed, loss, trained, transformation

_ANOTHER = 5


def _plain(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs())


def _outputs_of_another_batch(model: nn.Module, subject: Subject) -> Results:
    return [output.detach() for output in listed(model(*subject.inputs(_ANOTHER)))]


@transformation(dear=True, wraps=True, plainly=_plain)
def compiled(model: nn.Module, subject: Subject) -> Results:
    torch._dynamo.reset()
    return trained(model, subject.inputs(), torch.compile(model, fullgraph=True, backend="aot_eager"))


def _both_batches(model: nn.Module, subject: Subject, call: Callable[..., Any]) -> Results:
    return [*trained(model, subject.inputs(), call), *trained(model, subject.inputs(_ANOTHER), call)]


@transformation(dear=True, wraps=True, plainly=lambda model, subject: _both_batches(model, subject, model))
def compiled_dynamically(model: nn.Module, subject: Subject) -> Results:
    torch._dynamo.reset()
    return _both_batches(model, subject, torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True))


@transformation(dear=True, wraps=True, plainly=_outputs_of_another_batch)
def exported(model: nn.Module, subject: Subject) -> Results:
    dims = tuple({} if dim is None else {dim: Dim.DYNAMIC} for dim in subject.dims)
    inputs = tuple(tensor.detach() for tensor in subject.inputs(3))
    file = io.BytesIO()
    save(export(model, inputs, dynamic_shapes=dims), file)
    file.seek(0)
    return [output.detach() for output in listed(load(file).module()(*subject.inputs(_ANOTHER)))]


@transformation(dear=True, wraps=True, plainly=_outputs_of_another_batch)
def traced(model: nn.Module, subject: Subject) -> Results:
    inputs = tuple(tensor.detach() for tensor in subject.inputs(3))
    program = torch.jit.trace(model, inputs, check_trace=True)
    return [output.detach() for output in listed(program(*subject.inputs(_ANOTHER)))]


@transformation(dear=True, wraps=True)
def traced_and_given_a_further_input_of_another_batch(model: nn.Module, subject: Subject) -> Results:
    """A trace contains no checks written in Python, so the operators in it have to check their arguments."""
    inputs = tuple(tensor.detach() for tensor in subject.inputs(3))
    program = torch.jit.trace(model, inputs, check_trace=False)
    return [output.detach() for output in listed(program(subject.inputs(_ANOTHER)[0], *inputs[1:]))]


def _functional(model: nn.Module, subject: Subject, batch: int) -> tuple[Callable[..., Any], list[Tensor]]:
    """A function of the inputs and parameters that returns outputs and gradients, and the values to call it with."""
    inputs, names = subject.inputs(batch), [name for name, _ in model.named_parameters()]
    values = [*inputs, *(parameter.detach() for parameter in model.parameters())]

    def function(*values: Tensor) -> list[Tensor]:
        leaves = [value.detach().requires_grad_(value.is_floating_point()) for value in values]
        parameters = dict(zip(names, leaves[len(inputs) :], strict=True))
        outputs = listed(torch.func.functional_call(model, parameters, tuple(leaves[: len(inputs)])))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return [*(output.detach() for output in outputs), *torch.autograd.grad(loss(outputs), wanted)]

    return function, [value.detach() for value in values]


def _gradients_of_another_batch(model: nn.Module, subject: Subject) -> Results:
    function, values = _functional(model, subject, _ANOTHER)
    return function(*values)


@transformation(dear=True, wraps=True)
def made_a_graph(model: nn.Module, subject: Subject) -> Results:
    function, values = _functional(model, subject, 2)
    graph = make_fx(function, tracing_mode="real")(*values)
    return graph(*(value * 2 if value.is_floating_point() else value for value in values))


@transformation(dear=True, wraps=True, plainly=_gradients_of_another_batch)
def made_a_symbolic_graph(model: nn.Module, subject: Subject) -> Results:
    function, values = _functional(model, subject, 3)
    graph = make_fx(function, tracing_mode="symbolic")(*values)
    return graph(*_functional(model, subject, _ANOTHER)[1])


@transformation(wraps=True, plainly=_plain)
def traced_by_fx(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs(), torch.fx.symbolic_trace(nn.Sequential(model) if len(subject.dims) == 1 else model))
