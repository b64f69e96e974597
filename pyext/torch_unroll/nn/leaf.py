"""Modules as leaves of the graphs that torch.fx records, as torch.nn's are, which tracers know by the name of their package."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def is_recorded(module: torch.nn.Module, *inputs: Any) -> bool:
    """Whether a call of a module is recorded by torch.fx as one of a program's steps. The program itself is none."""
    for value in inputs:
        if isinstance(value, fx.Proxy):
            return module is not getattr(value.tracer, "root", None)
    return False


def call_forward(module: torch.nn.Module, *inputs: Any) -> Any:
    """A module without its hooks, whose work is recorded around it."""
    return module.forward(*inputs)


def record(module: torch.nn.Module, *inputs: Any) -> Any:
    """A proxy for what a module returns. The step of the program has the module's inputs up to the last that is not None.

    Raises:
        NameError: the tracer's root does not contain the module.
    """
    tracer: Any = next(value for value in inputs if isinstance(value, fx.Proxy)).tracer
    path = tracer.path_of_module(module)
    while inputs[-1] is None:
        inputs = inputs[:-1]
    if module._forward_hooks or module._forward_pre_hooks:  # forward runs between them: they are being recorded
        return tracer.create_proxy("call_function", call_forward, (tracer.create_proxy("get_attr", path, (), {}), *inputs), {})
    return tracer.create_proxy("call_module", path, inputs, {})
