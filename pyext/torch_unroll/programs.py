"""Who sees a call besides eager mode: compilers and transforms, or an export to ONNX."""

from __future__ import annotations

import torch

from torch_unroll.tracing import is_tracing

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def _is_proxied() -> bool:
    """Whether `make_fx` or `torch.export` records the operators that are called."""
    return torch._C._get_dispatch_mode(_PROXY) is not None or torch._ops._get_dispatch_mode_pre_dispatch(_PROXY) is not None


def is_recorded() -> bool:
    """Whether Python runs once, to be recorded by `torch.jit.trace`, `torch.export` or `make_fx`: what it decides then holds for
    every later call, with gradients or without. torch.compile is no such case, it guards what was decided."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return is_tracing() or _is_proxied()


def is_transformed() -> bool:
    """Whether torch.compile, torch.export, make_fx or torch.func takes the call apart. torch.jit.trace does not: it records the
    call as it is."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or _is_proxied()


def in_onnx_export() -> bool:
    """Whether the call becomes part of an ONNX model, which knows torch's operators alone."""
    compiling = torch.compiler.is_compiling()
    recorded = torch.compiler.is_exporting() if compiling else is_tracing()
    return recorded and torch.onnx.is_in_onnx_export()
