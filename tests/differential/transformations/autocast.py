"""Other precisions, with and without torch.autocast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, converted, gradients, listed, loss, trained, transformation


@transformation(precision=torch.float16)
def autocast_float16(model: nn.Module, subject: Subject) -> Results:
    with torch.autocast("cpu", torch.float16):
        return trained(model, subject.inputs())


def _forward_lowered(model: nn.Module, inputs: tuple[Tensor, ...]) -> Results:
    """Runs the model under autocast to bfloat16, and backward after the block, as torch recommends."""
    with torch.autocast("cpu", torch.bfloat16):
        outputs = listed(model(*inputs))
    loss(outputs).backward()
    return [*outputs, *gradients(model, inputs)]


@transformation(precision=torch.bfloat16)
def autocast_bfloat16(model: nn.Module, subject: Subject) -> Results:
    return _forward_lowered(model, subject.inputs())


@transformation(precision=torch.bfloat16)
def autocast_without_gradients(model: nn.Module, subject: Subject) -> Results:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return listed(model(*subject.inputs()))


@transformation()
def autocast_switched_off_inside(model: nn.Module, subject: Subject) -> Results:
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        return trained(model, subject.inputs())


@transformation(precision=torch.bfloat16)
def autocast_double_model(model: nn.Module, subject: Subject) -> Results:
    with torch.autocast("cpu", torch.bfloat16):
        return trained(model.double(), converted(subject.inputs(), Tensor.double))


@transformation(precision=torch.bfloat16)
def autocast_double_inputs(model: nn.Module, subject: Subject) -> Results:
    with torch.autocast("cpu", torch.bfloat16):
        return trained(model, converted(subject.inputs(), Tensor.double))


@transformation(precision=torch.bfloat16)
def autocast_low_inputs(model: nn.Module, subject: Subject) -> Results:
    return _forward_lowered(model, converted(subject.inputs(), Tensor.half))


@transformation(precision=torch.bfloat16)
def autocast_integer_inputs(model: nn.Module, subject: Subject) -> Results:
    with torch.autocast("cpu", torch.bfloat16):
        return listed(model(*(tensor.detach().long() for tensor in subject.inputs())))


@transformation()
def double_precision(model: nn.Module, subject: Subject) -> Results:
    return trained(model.double(), converted(subject.inputs(), Tensor.double))


@transformation()
def half_precision(model: nn.Module, subject: Subject) -> Results:
    return trained(model.half(), converted(subject.inputs(), Tensor.half))


@transformation()
def bfloat16_precision(model: nn.Module, subject: Subject) -> Results:
    return trained(model.bfloat16(), converted(subject.inputs(), Tensor.bfloat16))
