"""Two-dimensional convolution and its transpose, as torch.nn.functional has them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from torch_unroll.conv2d_ops import conv2d_dgrad, conv2d_fprop
from torch_unroll.engines import claims, resolve
from torch_unroll.shapes import pair, require, require_same, require_tensors


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _steps(value: Any, name: str) -> tuple[int, int]:
    """A stride or dilation: numbers above 0."""
    height, width = pair(value, name)
    require(height > 0 and width > 0, f"{name}: expected numbers above 0, got {(height, width)}")
    return height, width


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """What convolution and its transpose ask of their tensors alike."""
    require(input.dim() in (3, 4), f"input: expected 3 or 4 dimensions, got shape {_shape(input)}")
    require(weight.dim() == 4, f"weight: expected 4 dimensions, got shape {_shape(weight)}")
    require(min(weight.shape) > 0, f"weight: expected extents above 0, got shape {_shape(weight)}")
    require_same(input, "input", weight, "weight")
    require_same(input, "input", bias, "bias")
    require(groups > 0, f"groups: expected a number above 0, got {groups}")
    require(weight.shape[0] % groups == 0, f"weight: expected a first extent that {groups} groups divide, got {weight.shape[0]}")


def _four_sided(padding: Any, w: Tensor, stride: Any, dilation: Any) -> tuple[int, int, int, int]:
    """torch's `padding` argument as top, bottom, left, right; "same" puts the odd cell below and to the right."""
    if isinstance(padding, str):
        require(padding in ("same", "valid"), f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
        if padding == "valid":
            return (0, 0, 0, 0)
        require(tuple(stride) == (1, 1), f"padding: expected a stride of 1 with 'same', got {tuple(stride)}")
        total_h, total_w = dilation[0] * (w.shape[2] - 1), dilation[1] * (w.shape[3] - 1)
        return (total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2)
    height, width = pair(padding, "padding")
    require(height >= 0 and width >= 0, f"padding: expected numbers of 0 or more, got {(height, width)}")
    return (height, height, width, width)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    engine: str | None = None,
    precision: str = "conv",
) -> Tensor:
    """Convolution of an image batch; the same as `torch.nn.functional.conv2d`.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, of any strides.
        weight: (K, C/groups, R, S), of the same dtype.
        bias: (K), or None.
        stride, dilation: an int or a pair.
        padding: an int, a pair, "valid" or "same" (stride 1 only).
        groups: divides C and K.
        engine: one of `torch_unroll.engines()`; None takes the first that can.
        precision: how fp32 products are computed: "conv" follows `torch.backends.cudnn.conv.fp32_precision`, "rnn" its recurrent
            sibling; "tf32" or "ieee" say it outright.

    Returns:
        (N, K, P, Q) with P = (H + padding − dilation·(R−1) − 1) // stride + 1; channels_last if input or weight is.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; or the named engine's reason for refusing.
    """
    require_tensors(input=input, weight=weight, bias=bias)
    resolved = resolve(engine)
    if not claims(resolved, input):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    stride, dilation = _steps(stride, "stride"), _steps(dilation, "dilation")
    _check_tensors(input, weight, bias, groups)
    sides = _four_sided(padding, weight, stride, dilation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    K, channels, R, S = weight.shape
    require(batched.shape[1] == channels * groups, f"input: expected {channels * groups} channels, got {batched.shape[1]}")
    require(bias is None or tuple(bias.shape) == (K,), f"bias: expected shape ({K},), got {_shape(bias)}")
    reach = (batched.shape[2] + sides[0] + sides[1], batched.shape[3] + sides[2] + sides[3])
    needed = (dilation[0] * (R - 1) + 1, dilation[1] * (S - 1) + 1)
    require(
        reach[0] >= needed[0] and reach[1] >= needed[1],
        f"weight: expected a filter within the padded input of {reach}, got one that spans {needed}",
    )
    y = conv2d_fprop(batched, weight, bias, stride, sides, dilation, groups, precision, resolved)
    return y if input.dim() == 4 else y.squeeze(0)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    engine: str | None = None,
    precision: str = "conv",
) -> Tensor:
    """Transposed convolution: the input gradient of `conv2d`, used as an op; the same as `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, K, P, Q), or (K, P, Q) without a batch: what would be the output of the convolution it transposes.
        weight: (K, C/groups, R, S), the weight of that convolution.
        bias: (C), or None.
        stride, padding, dilation, groups: those of that convolution.
        output_padding: rows and columns added below and to the right; less than stride or dilation.
        engine, precision: as in `conv2d`.

    Returns:
        (N, C, H, W) with H = (P − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; or the named engine's reason for refusing.
    """
    require_tensors(input=input, weight=weight, bias=bias)
    resolved = resolve(engine)
    if not claims(resolved, input):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    stride, dilation = _steps(stride, "stride"), _steps(dilation, "dilation")
    padding, extra = pair(padding, "padding"), pair(output_padding, "output_padding")
    require(min(padding) >= 0, f"padding: expected numbers of 0 or more, got {padding}")
    require(min(extra) >= 0, f"output_padding: expected numbers of 0 or more, got {extra}")
    for each, step, spread in zip(extra, stride, dilation, strict=True):
        require(
            each < max(step, spread), f"output_padding: expected less than stride {stride} or dilation {dilation}, got {extra}"
        )
    _check_tensors(input, weight, bias, groups)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    K, window, C = weight.shape[0], weight.shape[2:], weight.shape[1] * groups
    require(batched.shape[1] == K, f"input: expected {K} channels, got {batched.shape[1]}")
    require(bias is None or tuple(bias.shape) == (C,), f"bias: expected shape ({C},), got {_shape(bias)}")
    spans = [(batched.shape[2 + i] - 1) * stride[i] + dilation[i] * (window[i] - 1) + 1 for i in (0, 1)]
    H, W = (spans[i] - 2 * padding[i] + extra[i] for i in (0, 1))
    require(H > 0 and W > 0, f"input: expected one large enough for an output, got shape {_shape(input)}, which gives {(H, W)}")
    # The added rows are padding that the convolution back would not have had below: then it gives back exactly P rows.
    sides = (padding[0], padding[0] - extra[0], padding[1], padding[1] - extra[1])
    x = conv2d_dgrad(batched, weight, (H, W), stride, sides, dilation, groups, precision, resolved)
    if bias is not None:
        x = x + bias.to(x.dtype).view(1, -1, 1, 1)
    return x if input.dim() == 4 else x.squeeze(0)
