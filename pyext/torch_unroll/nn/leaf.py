"""Makes this package's modules leaves of torch.fx's graphs, as torch.nn's modules are; by default, tracers treat only modules of
torch's own packages as leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def is_recorded(module: torch.nn.Module, *inputs: Any) -> bool:
    """Whether torch.fx records this call of a module as one node. It does not if the module is the one that is being traced."""
    for value in inputs:
        if isinstance(value, fx.Proxy):
            return module is not getattr(value.tracer, "root", None)
    return False


def call_forward(module: torch.nn.Module, *inputs: Any) -> Any:
    """Calls a module without its hooks, whose work is recorded separately."""
    return module.forward(*inputs)


def record(module: torch.nn.Module, *inputs: Any) -> Any:
    """Records a call of a module with its inputs up to the last one that is not None; returns a proxy for the result.

    Raises:
        NameError: the tracer's root does not contain the module.
    """
    tracer: Any = next(value for value in inputs if isinstance(value, fx.Proxy)).tracer
    path = tracer.path_of_module(module)
    while inputs[-1] is None:
        inputs = inputs[:-1]
    if module._forward_hooks or module._forward_pre_hooks:  # the hooks are being recorded around this forward
        return tracer.create_proxy("call_function", call_forward, (tracer.create_proxy("get_attr", path, (), {}), *inputs), {})
    return tracer.create_proxy("call_module", path, inputs, {})
