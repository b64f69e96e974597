"""Whether a call is recorded or transformed: by a compiler, a tracer, a transform of torch.func, or an export to ONNX."""

from __future__ import annotations

import torch

from torch_unroll.tracing import is_tracing

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def _is_proxied() -> bool:
    """Whether `make_fx` or `torch.export` is recording the operators that are called."""
    return torch._C._get_dispatch_mode(_PROXY) is not None or torch._ops._get_dispatch_mode_pre_dispatch(_PROXY) is not None


def is_recorded() -> bool:
    """Whether `torch.jit.trace`, `torch.export` or `make_fx` is recording. Python then runs once, and its decisions hold for
    every later call, with gradients or without. torch.compile does not count, since it guards its decisions."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return is_tracing() or _is_proxied()


def is_transformed() -> bool:
    """Whether torch.compile, torch.export, make_fx or torch.func transforms the call. torch.jit.trace does not: it records the
    call as it is."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or _is_proxied()


def in_onnx_export() -> bool:
    """Whether the call is being exported to ONNX: torch's exporter can translate only torch's own operators."""
    compiling = torch.compiler.is_compiling()
    recorded = torch.compiler.is_exporting() if compiling else is_tracing()
    return recorded and torch.onnx.is_in_onnx_export()
