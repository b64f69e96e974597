"""Tensors without data, and process-wide settings that must not affect a call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, converted, listed, trained, transformation


def _described(results: Results) -> Results:
    """Zeros in the shapes and dtypes of tensors without data, for comparison."""
    described: Results = []
    for tensor in results:
        described.append(None if tensor is None else torch.zeros(tensor.shape, dtype=tensor.dtype))
        assert tensor is None or tensor.device.type in ("meta", "cpu"), tensor.device
    return described


@transformation()
def meta_device(model: nn.Module, subject: Subject) -> Results:
    inputs = tuple(tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for tensor in subject.inputs())
    results = trained(model.to("meta"), inputs)
    assert all(tensor is None or tensor.is_meta for tensor in results), "a result that is not on the meta device"
    return _described(results)


@transformation()
def fake_tensors(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = tuple(mode.from_tensor(tensor) for tensor in inputs)
        outputs = listed(model(*fakes))
        shapes = [(output.shape, output.dtype) for output in outputs]
    return [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes]


@transformation()
def under_another_default_device(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    with torch.device("meta"):
        outputs = listed(model(*inputs))
        total = sum((output.float() ** 2).sum() for output in outputs)
        total.backward()
    return [*outputs, *(leaf.grad for leaf in (*inputs, *model.parameters()) if leaf.requires_grad)]


@transformation()
def under_default_device_meta_for_good(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    torch.set_default_device("meta")
    try:
        with torch.no_grad():
            return listed(model(*inputs))
    finally:
        torch.set_default_device(None)


@transformation()
def under_default_dtype_float64(model: nn.Module, subject: Subject) -> Results:
    torch.set_default_dtype(torch.float64)
    try:
        return trained(model, subject.inputs())
    finally:
        torch.set_default_dtype(torch.float32)


@transformation()
def model_made_on_meta(model: nn.Module, subject: Subject) -> Results:
    """Builds the model without data and loads its parameters afterwards, as is done with large models."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    return trained(model, subject.inputs())


@transformation()
def weights_on_meta(model: nn.Module, subject: Subject) -> Results:
    return listed(model.to("meta")(*subject.inputs()))


@transformation()
def inputs_on_meta(model: nn.Module, subject: Subject) -> Results:
    return listed(model(*converted(subject.inputs(), lambda tensor: tensor.to("meta"))))


@transformation()
def further_inputs_on_meta(model: nn.Module, subject: Subject) -> Results:
    first, *others = subject.inputs()
    return listed(model(first, *converted(tuple(others), lambda tensor: tensor.to("meta"))))


def _subclass(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Marked)


class Marked(Tensor):
    """A subclass of Tensor that defines nothing of its own."""


@transformation()
def tensor_subclass(model: nn.Module, subject: Subject) -> Results:
    outputs = listed(model(*(_subclass(tensor.detach()) for tensor in subject.inputs())))
    return [*(output.as_subclass(Tensor) for output in outputs), torch.tensor([type(output) is Marked for output in outputs])]
