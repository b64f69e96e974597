"""Max pooling over the windows of an image, with torch.nn.functional's signature, and over the steps of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from torch_unroll.calls import serving_engine, with_batch, without_batch
from torch_unroll.checks import MOST_INT32, require_shape
from torch_unroll.engines import claims, limits, resolve
from torch_unroll.kernels.shapes import Pair
from torch_unroll.ops.max_over_time import max_over_time_forward
from torch_unroll.ops.max_pool2d import max_pool2d_forward, max_pool2d_indices
from torch_unroll.ops.registration import operations
from torch_unroll.prepared.shortcut import Shortcuts
from torch_unroll.programs import in_onnx_export, is_recorded
from torch_unroll.shapes import Size, pair, pooled, remembered, require, require_each, require_tensors
from torch_unroll.torch_function import ask

_TORCHS: Any = F.max_pool2d


def _wants_gradient(x: Tensor) -> bool:
    """Whether a derivative of this call may be wanted, in which case the offsets of the chosen cells have to be stored."""
    if torch._C._are_functorch_transforms_active() or is_recorded():
        return True
    return (torch.is_grad_enabled() and x.requires_grad) or forward_ad._current_level >= 0


@remembered
def _output_size(x_size: Sequence[int], window: Pair, strides: Pair, pads: Pair, steps: Pair, ceil_mode: bool) -> Pair:
    """Checks the sizes of a call, with or without a batch; returns P and Q."""
    named = {"kernel_size": (window, 1), "stride": (strides, 1), "padding": (pads, 0), "dilation": (steps, 1)}
    for name, (numbers, least) in named.items():
        message = f"{name}: expected numbers from {least} to {MOST_INT32}, got {numbers}"
        require_each((number >= least for number in numbers), message)
        require_each((number <= MOST_INT32 for number in numbers), message)
    require_each(
        (2 * pads[i] <= window[i] for i in (0, 1)),
        f"padding: expected at most half of kernel_size {window}, got {pads}",
    )
    require(window[0] * window[1] <= MOST_INT32, f"kernel_size: expected a window of at most {MOST_INT32} cells, got {window}")
    message = f"input: expected (N, C, H, W) or (C, H, W), with no extent but N of 0, got shape {tuple(x_size)}"
    require(len(x_size) in (3, 4), message)
    require_each((extent > 0 for extent in x_size[-3:]), message)
    P, Q = (pooled(x_size[i - 2], window[i], strides[i], pads[i], steps[i], ceil_mode) for i in (0, 1))
    spans = tuple(steps[i] * (window[i] - 1) + 1 for i in (0, 1))
    message = f"kernel_size: expected a window within the padded input, got one that spans {spans}"
    require_each((extent > 0 for extent in (P, Q)), message)
    return P, Q


_SHORTCUTS = Shortcuts(operations["max_pool2d_forward"])


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    engine: str | None = None,
) -> Any:
    """Max pooling of a batch of images; equal to `torch.nn.functional.max_pool2d` in every bit and index.

    Of several equal maxima the first is chosen, and of several NaNs the last. A window without any cell of the plane yields
    -inf, and its gradient is dropped.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, with any strides.
        kernel_size: (R, S), an int or a pair.
        stride: an int or a pair; None stands for kernel_size.
        padding: an int or a pair, at most half of kernel_size; padded cells are never chosen.
        dilation: an int or a pair.
        ceil_mode: rounds the output's extents up; every window still starts inside the input or its left padding.
        return_indices: whether to also return the index of each maximum in its plane, row · W + column, as int64.
        engine: as in `conv2d`.

    Returns:
        (N, C, P, Q) with P = (H + 2 · padding − dilation · (R − 1) − 1) // stride + 1, or with the quotient rounded up if
        `ceil_mode`, unless the last window would then start beyond the input; channels_last if the input is. With
        `return_indices`, a pair of this output and the indices.

    Raises:
        RuntimeError: sizes do not fit together, as in torch; or a named engine refuses the call.
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode, return_indices, engine)
    if not torch.compiler.is_compiling():
        pooled_input: Tensor | None = _SHORTCUTS.take((input,), options)
        if pooled_input is not None:
            return pooled_input
    if has_torch_function_unary(input) and not torch.compiler.is_compiling():
        numbers: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        torchs: Any = F.max_pool2d_with_indices if return_indices else F.max_pool2d
        twin = max_pool2d_with_indices if return_indices else max_pool2d
        named = {**numbers, "return_indices": return_indices}
        return ask(max_pool2d, (input,), (input, kernel_size), {"engine": engine}, torchs, twin, **named)
    resolved = serving_engine(engine, input=input)
    if resolved is None:
        return _TORCHS(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if type(ceil_mode) is not bool:
        raise TypeError(f"ceil_mode: expected a bool, got {ceil_mode!r}")
    window = pair(kernel_size, "kernel_size")
    default = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    strides = window if default else pair(stride, "stride")
    pads, steps = pair(padding, "padding"), pair(dilation, "dilation")
    size = _output_size(input.shape, window, strides, pads, steps, ceil_mode)
    x = with_batch(input)
    if limits.is_large(x) and not limits.serves(resolved, limits.max_pool2d(x.shape, size)):
        return _TORCHS(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    with_offsets = bool(return_indices) or _wants_gradient(x)
    arguments = (window, strides, pads, steps, ceil_mode, with_offsets, resolved)
    y, offsets = max_pool2d_forward(x, *arguments)
    if not return_indices:
        if input.dim() == 4 and not torch.compiler.is_compiling():
            _SHORTCUTS.learn((input,), options, arguments)
        return without_batch(y, input)
    indices = max_pool2d_indices(offsets, x.shape[2:], window, strides, pads, steps, resolved)
    return without_batch(y, input), without_batch(indices, input)


def max_pool2d_with_indices(*args: Any, engine: str | None = None, **kwargs: Any) -> Any:
    """`torch.nn.functional.max_pool2d_with_indices`: `max_pool2d` with `return_indices=True`, which overrides an argument of that
    name."""
    return max_pool2d(*args[:6], **{**kwargs, "return_indices": True}, engine=engine)


def max_over_time(x: Tensor, lengths: Tensor | None = None, *, engine: str | None = None) -> Tensor:
    """The largest value of each channel over the steps of a sequence: max pooling with one window that spans all of time.

    Equivalent to `torch.where(t < lengths, x, -inf).amax(0)`, where t is the step of each element, but with the gradient of
    pooling: all of it goes to the first of equal values, or to the last NaN. A sequence of length 0 yields -inf, and its gradient
    is dropped.

    Args:
        x: (T, N, C) with T > 0; fp16, bf16, fp32 or fp64, with any strides.
        lengths: (N), of any integer dtype, on x's device: the number of valid steps of each sequence, clamped to [0, T].
            A call does not copy it from the GPU to the host. None stands for all steps.
        engine: as in `conv2d`, but engine `torch` serves calls that would go to torch's own operator, since torch has no such
            operator.

    Returns:
        (N, C).

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together; or a named engine refuses the call.
    """
    if has_torch_function_variadic(x, lengths) and not torch.compiler.is_compiling():
        return ask(max_over_time, (x, lengths), (x, lengths), {"engine": engine})
    require_tensors(x=x, lengths=lengths)
    claims(
        "torch", x, (lengths,), ("lengths",), name="x"
    )  # raises for layouts without strides, since torch has no operator to fall back to
    message = f"x: expected (T, N, C) with T above 0, got shape {tuple(x.shape)}"
    require(x.dim() == 3, message)
    require(x.shape[0] > 0, message)
    require(x.is_floating_point(), f"x: expected a floating-point dtype, got {x.dtype}")
    if lengths is not None:
        require_shape(lengths, "lengths", x.shape[1])
        integer = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
        require(integer, f"lengths: expected an integer dtype, got {lengths.dtype}")
        require(lengths.device == x.device, f"lengths: expected device {x.device} like x, got {lengths.device}")
    resolved = resolve(engine)
    if in_onnx_export():
        require(resolved == "auto", f"engine: expected None, since ONNX has only torch's operators, got {resolved!r}")
        past = None if lengths is None else torch.arange(x.shape[0], device=x.device).unsqueeze(1) >= lengths
        return (x if past is None else x.masked_fill(past.unsqueeze(2), -torch.inf)).amax(0)
    if not claims(resolved, x):
        resolved = "torch"  # torch has no operator to fall back to
    return max_over_time_forward(x, lengths, _wants_gradient(x), resolved)[0]
