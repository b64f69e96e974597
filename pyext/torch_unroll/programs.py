"""Who sees a call besides eager mode: compilers and transforms, or an export to ONNX."""

from __future__ import annotations

import torch

_PROXY = torch._C._TorchDispatchModeKey.PROXY


def is_transformed() -> bool:
    """Whether torch.compile, torch.export, make_fx or torch.func takes the call apart. torch.jit.trace does not: it records the
    call as it is."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_dispatch_mode(_PROXY) is not None
        or torch._ops._get_dispatch_mode_pre_dispatch(_PROXY) is not None
    )


def in_onnx_export() -> bool:
    """Whether the call becomes part of an ONNX model, which knows torch's operators alone."""
    compiling = torch.compiler.is_compiling()
    recorded = torch.compiler.is_exporting() if compiling else torch._C._get_tracing_state() is not None
    return recorded and torch.onnx.is_in_onnx_export()
