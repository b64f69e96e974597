"""Calls at and beyond the limits of what is valid: ours must raise if torch raises, and return a result if torch does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, converted, listed, trained, transformation


@transformation()
def zero_batch(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs(0))


@transformation()
def batch_of_one(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs(1))


def _widened(tensor: Tensor, dim: int, by: int) -> Tensor:
    """The tensor with one slice added along a dimension if `by` is positive, or with `-by` slices removed."""
    kept = tensor.detach().narrow(dim, 0, tensor.shape[dim] + min(by, 0))
    return torch.cat([kept, kept.narrow(dim, 0, 1)], dim) if by > 0 else kept


def _first(model: nn.Module, subject: Subject, dim: int, by: int) -> Results:
    x, *others = subject.inputs()
    return trained(model, (_widened(x, dim, by).requires_grad_(), *others))


def _channels(subject: Subject) -> int:
    rank = subject.inputs()[0].dim()
    return rank - 3 if "RNN" not in subject.name and rank > 3 else rank - 1


@transformation()
def a_channel_too_many(model: nn.Module, subject: Subject) -> Results:
    return _first(model, subject, _channels(subject), 1)


@transformation()
def a_channel_too_few(model: nn.Module, subject: Subject) -> Results:
    return _first(model, subject, _channels(subject), -1)


@transformation()
def a_last_extent_too_long(model: nn.Module, subject: Subject) -> Results:
    return _first(model, subject, -1, 1)


def _further(model: nn.Module, subject: Subject, by: int) -> Results:
    """Calls the model once for each changed extent of an input other than the first, and returns all results.

    If the input has a batch dimension, only the extent of that dimension is changed; otherwise every extent is, in turn.
    """
    x, *others = subject.inputs()
    results: Results = []
    for place, dim in enumerate(subject.dims[1:]):
        dims = range(others[place].dim()) if dim is None else (dim,)
        for axis in dims:
            wrong = list(others)
            wrong[place] = _widened(others[place], axis, by)
            results += listed(model(x, *wrong))
    return results


@transformation()
def a_further_input_too_long(model: nn.Module, subject: Subject) -> Results:
    return _further(model, subject, 1)


@transformation()
def a_further_input_too_short(model: nn.Module, subject: Subject) -> Results:
    return _further(model, subject, -1)


def _parameter(model: nn.Module, subject: Subject, by: int) -> Results:
    """Calls the model after changing, in each of its modules, the first extent of the first parameter."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_widened(parameter, 0, by)))
            break
    return listed(model(*subject.inputs()))


@transformation()
def a_weight_too_long(model: nn.Module, subject: Subject) -> Results:
    return _parameter(model, subject, 1)


@transformation()
def a_weight_too_short(model: nn.Module, subject: Subject) -> Results:
    return _parameter(model, subject, -1)


@transformation()
def a_dimension_too_few(model: nn.Module, subject: Subject) -> Results:
    x, *others = subject.inputs()
    return listed(model(x[0], *others))


@transformation()
def a_dimension_too_many(model: nn.Module, subject: Subject) -> Results:
    x, *others = subject.inputs()
    return listed(model(x[None], *others))


@transformation()
def double_inputs(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*converted(subject.inputs(), Tensor.double)))


@transformation()
def double_first_input(model: nn.Module, subject: Subject) -> Results:
    x, *others = subject.inputs()
    return listed(model(x.double(), *others))


@transformation()
def half_inputs(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*converted(subject.inputs(), Tensor.half)))


@transformation()
def integer_inputs(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*(tensor.detach().long() for tensor in subject.inputs())))


@transformation()
def complex_inputs(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*converted(subject.inputs(), lambda tensor: tensor.to(torch.complex64))))


@transformation()
def boolean_inputs(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*(tensor.detach() > 0 if tensor.is_floating_point() else tensor for tensor in subject.inputs())))


@transformation()
def one_double_parameter(model: nn.Module, subject: Subject) -> Results:
    *_, last = model.parameters()
    last.data = last.data.double()
    return listed(model(*subject.inputs()))


@transformation()
def not_a_tensor(model: nn.Module, subject: Subject) -> Results:
    _, *others = subject.inputs()
    return listed(model([[1.0]], *others))
