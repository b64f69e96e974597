"""torch.func, applied to models as functions of their parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, floating, gradients, listed, loss, transformation


def _function(model: nn.Module, subject: Subject) -> tuple[Callable[..., list[Tensor]], list[Tensor]]:
    """The model as a function of its differentiable tensors, and these tensors: the inputs, then the parameters."""
    inputs, parameters = [tensor.detach() for tensor in subject.inputs()], dict(model.named_parameters())
    places = floating(inputs)

    def function(*values: Tensor) -> list[Tensor]:
        arguments = list(inputs)
        for place, value in zip(places, values, strict=False):
            arguments[place] = value
        output = functional_call(model, dict(zip(parameters, values[len(places) :], strict=True)), tuple(arguments))
        return [tensor for tensor in listed(output) if tensor.is_floating_point()]

    return function, [*(inputs[place] for place in places), *(parameter.detach() for parameter in parameters.values())]


def _batch(values: list[Tensor], chosen: range) -> list[Tensor]:
    return [torch.stack([value, 0.5 * value, -value]) if place in chosen else value for place, value in enumerate(values)]


def _each(function: Callable[..., Any], values: list[Tensor], chosen: range) -> Results:
    """The result of vmap, computed by a loop."""
    calls = [function(*(value[i] if place in chosen else value for place, value in enumerate(values))) for i in range(3)]
    return [torch.stack(parts) for parts in zip(*calls, strict=True)]


def _vectorized(function: Callable[..., Any], values: list[Tensor], chosen: range) -> Results:
    return list(vmap(function, tuple(0 if place in chosen else None for place in range(len(values))))(*values))


def _gradient(function: Callable[..., list[Tensor]], count: int) -> Callable[..., Any]:
    return grad(lambda *values: loss(function(*values)), tuple(range(count)))


def _inputs_batched(model: nn.Module, subject: Subject, run: Callable[..., Results]) -> Results:
    function, values = _function(model, subject)
    chosen = range(len(floating(subject.inputs())))
    return run(function, _batch(values, chosen), chosen)


@transformation(plainly=lambda model, subject: _inputs_batched(model, subject, _each))
def vmap_over_inputs(model: nn.Module, subject: Subject) -> Results:
    return _inputs_batched(model, subject, _vectorized)


def _everything_batched(model: nn.Module, subject: Subject, run: Callable[..., Results]) -> Results:
    function, values = _function(model, subject)
    chosen = range(len(values))
    return run(function, _batch(values, chosen), chosen)


@transformation(plainly=lambda model, subject: _everything_batched(model, subject, _each))
def vmap_over_everything(model: nn.Module, subject: Subject) -> Results:
    return _everything_batched(model, subject, _vectorized)


def _gradients_batched(model: nn.Module, subject: Subject, run: Callable[..., Results]) -> Results:
    function, values = _function(model, subject)
    chosen = range(len(floating(subject.inputs())))
    return run(_gradient(function, len(values)), _batch(values, chosen), chosen)


def _each_gradient(model: nn.Module, subject: Subject) -> Results:
    """The gradient of each sample, computed by autograd, for models that torch.func rejects."""
    function, values = _function(model, subject)
    chosen = range(len(floating(subject.inputs())))

    def gradient(*values: Tensor) -> Any:
        leaves = [value.detach().requires_grad_() for value in values]
        return torch.autograd.grad(loss(function(*leaves)), leaves)

    return _each(gradient, _batch(values, chosen), chosen)


@transformation(plainly=_each_gradient)
def gradients_of_each_sample(model: nn.Module, subject: Subject) -> Results:
    return _gradients_batched(model, subject, _vectorized)


def _gradient_by_autograd(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    loss(listed(model(*inputs))).backward()
    return gradients(model, inputs)


@transformation(plainly=_gradient_by_autograd)
def functional_gradient(model: nn.Module, subject: Subject) -> Results:
    function, values = _function(model, subject)
    return list(_gradient(function, len(values))(*values))


def _jacobian(model: nn.Module, subject: Subject, run: Callable[..., Results]) -> Results:
    function, values = _function(model, subject)
    return run(function, values)


def _reverse(function: Callable[..., list[Tensor]], values: list[Tensor]) -> Results:
    places = tuple(range(len(values)))
    return [block for row in jacrev(function, places)(*values) for block in row]


def _rows(function: Callable[..., list[Tensor]], values: list[Tensor]) -> Results:
    """A Jacobian, computed by one backward pass for each element of the outputs."""
    leaves = [value.clone().requires_grad_() for value in values]
    blocks: Results = []
    for output in function(*leaves):
        rows = [torch.autograd.grad(element, leaves, retain_graph=True) for element in output.flatten()]
        for leaf, *parts in zip(leaves, *rows, strict=True):
            blocks.append(torch.stack(parts).view(output.shape + leaf.shape))
    return blocks


@transformation(plainly=lambda model, subject: _jacobian(model, subject, _rows))
def jacobian(model: nn.Module, subject: Subject) -> Results:
    return _jacobian(model, subject, _reverse)


def _tangents(values: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(value.cos() for value in values)


def _pushed_by_two_backwards(model: nn.Module, subject: Subject) -> Results:
    """Forward mode, computed by differentiating reverse mode, which is linear in its seeds, with respect to the seeds."""
    function, values = _function(model, subject)
    leaves = [value.clone().requires_grad_() for value in values]
    outputs = function(*leaves)
    seeds = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(outputs, leaves, seeds, create_graph=True)
    moved = torch.autograd.grad(pulled, seeds, _tangents(values))
    return [*(output.detach() for output in outputs), *moved]


@transformation(plainly=_pushed_by_two_backwards)
def forward_mode(model: nn.Module, subject: Subject) -> Results:
    function, values = _function(model, subject)
    outputs, moved = jvp(function, tuple(values), _tangents(values))
    return [*outputs, *moved]


@transformation()
def functional_call_with_other_parameters(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    parameters = {name: (2 * parameter.detach()).requires_grad_() for name, parameter in model.named_parameters()}
    outputs = listed(functional_call(model, parameters, inputs))
    loss(outputs).backward()
    return [*outputs, *(leaf.grad for leaf in (*inputs, *parameters.values()) if leaf.requires_grad)]
