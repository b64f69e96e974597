"""Gradients in several forms that autograd offers, changes to the tensors that autograd saves, and inputs with other strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, converted, gradients, listed, loss, trained, transformation


@transformation()
def plain(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs())


@transformation()
def no_grad(model: nn.Module, subject: Subject) -> Results:
    with torch.no_grad():
        return listed(model(*subject.inputs()))


@transformation()
def inference_mode(model: nn.Module, subject: Subject) -> Results:
    with torch.inference_mode():
        return [output.clone() for output in listed(model(*subject.inputs()))]


@transformation()
def frozen_weights(model: nn.Module, subject: Subject) -> Results:
    return trained(model.requires_grad_(False), subject.inputs())


@transformation()
def frozen_inputs(model: nn.Module, subject: Subject) -> Results:
    return trained(model, tuple(tensor.detach() for tensor in subject.inputs()))


@transformation()
def one_frozen_parameter(model: nn.Module, subject: Subject) -> Results:
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    return trained(model, subject.inputs())


def _leaves(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [leaf for leaf in (*inputs, *model.parameters()) if leaf.requires_grad]


@transformation()
def double_backward(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    first = torch.autograd.grad(loss(listed(model(*inputs))), _leaves(model, inputs), create_graph=True)
    loss(first).backward()
    return [*first, *gradients(model, inputs)]


@transformation()
def gradient_penalty(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    outputs = listed(model(*inputs))
    (dx,) = torch.autograd.grad(loss(outputs), inputs[0], create_graph=True)
    (loss(outputs) + (dx.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    return [dx, *gradients(model, inputs)]


@transformation()
def batched_gradients(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    output = listed(model(*inputs))[0]
    seeds = torch.stack([torch.ones_like(output), output.detach(), -output.detach()])
    return list(torch.autograd.grad(output, _leaves(model, inputs), seeds, is_grads_batched=True, allow_unused=True))


@transformation()
def backward_twice(model: nn.Module, subject: Subject) -> Results:
    inputs = subject.inputs()
    value = loss(listed(model(*inputs)))
    value.backward(retain_graph=True)
    value.backward()
    return gradients(model, inputs)


@transformation()
def hooks(model: nn.Module, subject: Subject) -> Results:
    inputs, seen = subject.inputs(), list[Tensor]()
    inputs[0].register_hook(lambda gradient: gradient * 2)
    model.register_full_backward_hook(lambda module, dx, dy: seen.extend(value for value in (*dx, *dy) if value is not None))
    model.register_forward_hook(lambda module, arguments, output: seen.extend(value.detach() for value in listed(output)))
    return [*trained(model, inputs), *seen]


@transformation()
def anomaly_detection(model: nn.Module, subject: Subject) -> Results:
    with torch.autograd.detect_anomaly(check_nan=True):
        return trained(model, subject.inputs())


@transformation()
def checkpointed(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs(), lambda *inputs: checkpoint(model, *inputs, use_reentrant=False))


@transformation()
def checkpointed_reentrantly(model: nn.Module, subject: Subject) -> Results:
    return trained(model, subject.inputs(), lambda *inputs: checkpoint(model, *inputs, use_reentrant=True))


@transformation()
def saved_tensors_copied(model: nn.Module, subject: Subject) -> Results:
    def pack(tensor: Tensor) -> Any:
        return tensor.requires_grad, tensor.detach().clone()

    with saved_tensors_hooks(pack, lambda packed: packed[1]):
        return trained(model, subject.inputs())


def _hostile(model: nn.Module, subject: Subject, unpack: Any) -> Results:
    """Runs backward with saved tensors that `unpack` changes. The loss is computed outside of the hooks, so only the model can
    raise."""
    inputs = subject.inputs()
    with saved_tensors_hooks(lambda tensor: tensor.detach(), unpack):
        outputs = listed(model(*inputs))
    loss(outputs).backward()
    return [*outputs, *gradients(model, inputs)]


_WIDER = {torch.float32: torch.float64, torch.int64: torch.int32, torch.uint8: torch.int64}


@transformation(refusal=RuntimeError)
def saved_tensors_of_another_dtype(model: nn.Module, subject: Subject) -> Results:
    return _hostile(model, subject, lambda tensor: tensor.to(_WIDER.get(tensor.dtype, torch.float64)))


@transformation(refusal=RuntimeError)
def saved_tensors_cut_short(model: nn.Module, subject: Subject) -> Results:
    return _hostile(model, subject, lambda tensor: tensor[..., :-1])


@transformation(refusal=RuntimeError)
def saved_tensors_of_another_rank(model: nn.Module, subject: Subject) -> Results:
    return _hostile(model, subject, lambda tensor: tensor.flatten())


def _after(model: nn.Module, subject: Subject, change: Any) -> Results:
    """Runs backward after a tensor that it may need was changed in place; `change` gets the first input and the outputs."""
    inputs = subject.inputs()
    copies = tuple(tensor * 1 for tensor in inputs)
    outputs = listed(model(*copies))
    with torch.no_grad():
        change(copies[0], outputs)
    loss(outputs).backward()
    return [*outputs, *gradients(model, inputs)]


@transformation(plainly=plain)
def input_changed_in_place(model: nn.Module, subject: Subject) -> Results:
    return _after(model, subject, lambda x, outputs: x.add_(1))


@transformation()
def output_changed_in_place(model: nn.Module, subject: Subject) -> Results:
    return _after(model, subject, lambda x, outputs: outputs[0].mul_(2))


@transformation(plainly=plain)
def weight_changed_in_place(model: nn.Module, subject: Subject) -> Results:
    return _after(model, subject, lambda x, outputs: [parameter.add_(1) for parameter in model.parameters()])


@transformation()
def strided_inputs(model: nn.Module, subject: Subject) -> Results:
    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor + 1], -1)[..., 0]

    return trained(model, converted(subject.inputs(), strided))


@transformation()
def expanded_inputs(model: nn.Module, subject: Subject) -> Results:
    def expanded(tensor: Tensor) -> Tensor:
        return tensor[..., :1].expand(tensor.shape)

    return trained(model, converted(subject.inputs(), expanded))


@transformation()
def channels_last(model: nn.Module, subject: Subject) -> Results:
    def rearranged(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    results = trained(model.to(memory_format=torch.channels_last), converted(subject.inputs(), rearranged))
    output = results[0]
    assert output is not None
    return [*results, torch.tensor(output.stride())] if output.dim() == 4 else results
