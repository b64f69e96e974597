"""Modules that are copied, stored, trained, reparametrized, or wrapped for distributed training (with one process)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from tests.differential.subjects import Subject
from tests.differential.transformations.registry import Results, listed, loss, trained, transformation


@transformation()
def deepcopied(model: nn.Module, subject: Subject) -> Results:
    return trained(copy.deepcopy(model), subject.inputs())


@transformation()
def pickled(model: nn.Module, subject: Subject) -> Results:
    return trained(pickle.loads(pickle.dumps(model)), subject.inputs())


@transformation()
def saved_and_loaded(model: nn.Module, subject: Subject) -> Results:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return trained(torch.load(file, weights_only=False), subject.inputs())


@transformation()
def state_in_torchs_module(model: nn.Module, subject: Subject) -> Results:
    torchs = subject.make(nn)
    torchs.load_state_dict(model.state_dict())
    return [*torchs.state_dict().values(), *listed(torchs(*subject.inputs()))]


@transformation()
def trained_by_sgd(model: nn.Module, subject: Subject) -> Results:
    parameters = list(model.parameters())
    for _ in range(3 if parameters else 0):
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        optimizer.zero_grad()
        loss(listed(model(*subject.inputs()))).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@transformation()
def in_evaluation(model: nn.Module, subject: Subject) -> Results:
    return trained(model.eval(), subject.inputs())


@transformation()
def weights_normalized(model: nn.Module, subject: Subject) -> Results:
    """Replaces each weight of a finished model by one that weight_norm computes from other parameters."""
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() > 1:
                parametrizations.weight_norm(module, name)
    return trained(model, subject.inputs())


@contextmanager
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@transformation()
def distributed(model: nn.Module, subject: Subject) -> Results:
    with _one_process():
        parallel = DistributedDataParallel(model) if any(model.parameters()) else model
        return trained(model, subject.inputs(), parallel)


@transformation()
def sharded(model: nn.Module, subject: Subject) -> Results:
    with _one_process():
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        inputs = subject.inputs()
        outputs = listed(model(*inputs))
        loss(outputs).backward()
        dw = [parameter.grad.full_tensor() for parameter in model.parameters() if parameter.grad is not None]
        return [*outputs, *(tensor.grad for tensor in inputs), *dw]
