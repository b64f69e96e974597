"""Engine `torch`: the formulas, backward included, written out in plain torch. It runs on every device, but is slow."""

from __future__ import annotations

import torch

from torch_unroll.engines.interface import DTYPES
from torch_unroll.engines.reference import conv2d, max_pool2d, rnn


class ReferenceEngine:
    """The functions of `engines.interface.Engine`, and `rnn_tangent`, which computes tangents for every engine."""

    name = "torch"

    conv2d_fprop = staticmethod(conv2d.conv2d_fprop)
    conv2d_dgrad = staticmethod(conv2d.conv2d_dgrad)
    conv2d_wgrad = staticmethod(conv2d.conv2d_wgrad)
    conv2d_wgrad_bias = staticmethod(conv2d.conv2d_wgrad_bias)
    unfold = staticmethod(conv2d.unfold)
    fold = staticmethod(conv2d.fold)
    max_pool2d_forward = staticmethod(max_pool2d.max_pool2d_forward)
    max_pool2d_backward = staticmethod(max_pool2d.max_pool2d_backward)
    max_pool2d_gather = staticmethod(max_pool2d.max_pool2d_gather)
    max_pool2d_indices = staticmethod(max_pool2d.max_pool2d_indices)
    max_over_time_forward = staticmethod(max_pool2d.max_over_time_forward)
    max_over_time_backward = staticmethod(max_pool2d.max_over_time_backward)
    max_over_time_gather = staticmethod(max_pool2d.max_over_time_gather)
    rnn_forward = staticmethod(rnn.rnn_forward)
    rnn_backward = staticmethod(rnn.rnn_backward)
    rnn_tangent = staticmethod(rnn.rnn_tangent)
    rnn_cell_forward = staticmethod(rnn.rnn_cell_forward)
    rnn_cell_backward = staticmethod(rnn.rnn_cell_backward)

    def warmup(self, op: str, dtype: torch.dtype, device: torch.device) -> None:
        """Does nothing: torch's operators need no compilation."""


def refuses(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns None for the dtypes of the compiled kernels, which engine `torch` accepts on any device; else the reason."""
    return None if dtype in DTYPES else f"has no formulas for {dtype}"


ENGINE = ReferenceEngine()
