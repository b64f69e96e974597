"""Two-dimensional convolution and its transpose, as torch.nn.functional has them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from torch_unroll.autocast import lowered
from torch_unroll.engines import claims, limits, resolve
from torch_unroll.engines.interface import Padding, Pair
from torch_unroll.history import gradient_with_history
from torch_unroll.ops.conv2d import conv2d_dgrad, conv2d_fprop
from torch_unroll.shapes import (
    Size,
    either,
    facts,
    index,
    pair,
    remembered,
    require,
    require_each,
    require_tensors,
    without_batch,
)
from torch_unroll.torch_function import ask


def _require_common(input: Any, weight: Any, bias: Any, stride: Pair, dilation: Pair, groups: int) -> None:
    """What convolution and its transpose ask alike. Tensors come as (shape, dtype, device)."""
    for name, value in (("stride", stride), ("dilation", dilation)):
        require_each((number > 0 for number in value), f"{name}: expected numbers above 0, got {value}")
    (x, *kind), (w, *kind_of_w) = input, weight
    require(len(x) in (3, 4), f"input: expected 3 or 4 dimensions, got shape {tuple(x)}")
    require(len(w) == 4, f"weight: expected 4 dimensions, got shape {tuple(w)}")
    require_each((extent > 0 for extent in (w[0], w[2], w[3])), f"weight: expected extents above 0, got shape {tuple(w)}")
    require_each(
        (either(extent > 0, x[-3] == 0, len(x) == 4 and x[0] == 0) for extent in x[-2:]),
        f"input: expected a plane with pixels, or no batch or channels, got shape {tuple(x)}",
    )
    require(kind == kind_of_w, f"weight: expected {kind[0]} on {kind[1]} like input, got {kind_of_w[0]} on {kind_of_w[1]}")
    if bias is not None:
        require(kind == [*bias[1:]], f"bias: expected {kind[0]} on {kind[1]} like input, got {bias[1]} on {bias[2]}")
    require(groups > 0, f"groups: expected a number above 0, got {groups}")
    require(w[0] % groups == 0, f"weight: expected a first extent that {groups} groups divide, got {w[0]}")


def _require_channels(x: Any, channels: int, bias: Any, outputs: int) -> None:
    require(x[-3] == channels, f"input: expected {channels} channels, got {x[-3]}")
    if bias is not None:
        message = f"bias: expected shape ({outputs},), got {tuple(bias[0])}"
        require(len(bias[0]) == 1, message)
        require(bias[0][0] == outputs, message)


def _four_sided(padding: Pair | str, w: Any, stride: Pair, dilation: Pair) -> Padding:
    """torch's `padding` argument as top, bottom, left, right; "same" puts the odd cell below and to the right."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if isinstance(padding, str):
        require(padding == "same", f"padding: expected 'same', 'valid' or numbers, got {padding!r}")
        require(stride == (1, 1), f"padding: expected a stride of 1 with 'same', got {stride}")
        height, width = dilation[0] * (w[2] - 1), dilation[1] * (w[3] - 1)
        return (height // 2, height - height // 2, width // 2, width - width // 2)
    require_each((number >= 0 for number in padding), f"padding: expected numbers of 0 or more, got {padding}")
    return (padding[0], padding[0], padding[1], padding[1])


@remembered
def _conv2d_sides(
    input: Any, weight: Any, bias: Any, stride: Pair, padding: Pair | str, dilation: Pair, groups: int
) -> tuple[Padding, str | None]:
    """Checks a call of conv2d; its padding on each side, and why it is too large for compiled kernels."""
    _require_common(input, weight, bias, stride, dilation, groups)
    x, w = input[0], weight[0]
    sides = _four_sided(padding, w, stride, dilation)
    _require_channels(x, w[1] * groups, bias, w[0])
    reach = (x[-2] + sides[0] + sides[1], x[-1] + sides[2] + sides[3])
    needed = (dilation[0] * (w[2] - 1) + 1, dilation[1] * (w[3] - 1) + 1)
    require_each(
        (reach[i] >= needed[i] for i in (0, 1)),
        f"weight: expected a filter within the padded input of {reach}, got one that spans {needed}",
    )
    size = [(reach[i] - needed[i]) // stride[i] + 1 for i in (0, 1)]
    x_size, y_size = (1, *x[-3:]), (1, w[0], *size)
    return sides, limits.conv2d(x_size, w, y_size, stride, sides[::2], dilation, groups)


@remembered
def _conv_transpose2d_sizes(
    input: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, extra: Pair, dilation: Pair, groups: int
) -> tuple[Pair, Padding, str | None]:
    """Checks a call of conv_transpose2d; its output's (H, W), the padding of the convolution it transposes, and why that is too
    large for compiled kernels."""
    require_each((number >= 0 for number in padding), f"padding: expected numbers of 0 or more, got {padding}")
    require_each((number >= 0 for number in extra), f"output_padding: expected numbers of 0 or more, got {extra}")
    for each, step, spread in zip(extra, stride, dilation, strict=True):
        fits = step <= 0 or spread <= 0 or each < max(step, spread)
        require(fits, f"output_padding: expected less than stride {stride} or dilation {dilation}, got {extra}")
    _require_common(input, weight, bias, stride, dilation, groups)
    x, w = input[0], weight[0]
    require(w[1] > 0, f"weight: expected extents above 0, got shape {tuple(w)}")
    _require_channels(x, w[0], bias, w[1] * groups)
    spans = [(x[i - 2] - 1) * stride[i] + dilation[i] * (w[2 + i] - 1) + 1 for i in (0, 1)]
    H, W = (spans[i] - 2 * padding[i] + extra[i] for i in (0, 1))
    message = f"input: expected one large enough for an output, got shape {tuple(x)}, which gives {(H, W)}"
    require_each((extent >= 0 for extent in (H, W)), message)
    require_each((either(extent > 0, len(x) == 4 and x[0] == 0) for extent in (H, W)), message)
    # The added rows are padding that the convolution back would not have had below: then it gives back exactly P rows.
    sides = (padding[0], padding[0] - extra[0], padding[1], padding[1] - extra[1])
    x_size, y_size = (1, w[1] * groups, H, W), (1, *x[-3:])
    return (H, W), sides, limits.conv2d(x_size, w, y_size, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    engine: str | None = None,
    precision: str = "conv",
) -> Tensor:
    """Convolution of an image batch; the same as `torch.nn.functional.conv2d`.

    Backward keeps `input` where `weight` requires a gradient, and `weight` where `input` does, as torch's does: no copies.
    Engines `cuda` and `cupy` pack an NCHW image channels_last, as workspace, in each product that tensor cores compute.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, of any strides.
        weight: (K, C/groups, R, S), of the same dtype.
        bias: (K), or None.
        stride, dilation: an int or a pair.
        padding: an int, a pair, "valid" or "same" (stride 1 only).
        groups: divides C and K.
        engine: one of `torch_unroll.available_engines()`; None takes the first that can.
        precision: how fp32 products are computed: "conv" follows `torch.backends.cudnn.conv.fp32_precision`, "rnn" its recurrent
            sibling; "tf32" or "ieee" say it outright.

    Returns:
        (N, K, P, Q) with P = (H + padding − dilation·(R−1) − 1) // stride + 1; channels_last if input or weight is.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit, as torch's; or the named engine's reason for refusing.
    """
    if has_torch_function_variadic(input, weight, bias) and not torch.compiler.is_compiling():
        arguments = (input, weight, bias, stride, padding, dilation, groups)
        return ask(conv2d, arguments[:3], arguments, {"engine": engine, "precision": precision}, F.conv2d)
    require_tensors(input=input, weight=weight, bias=bias)
    resolved = resolve(engine)
    if not claims(resolved, input, (weight, bias), ("weight", "bias")):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    stride, dilation, groups = pair(stride, "stride"), pair(dilation, "dilation"), index(groups, "groups")
    padding = padding if isinstance(padding, str) else pair(padding, "padding")
    sides, too_large = _conv2d_sides(facts(input), facts(weight), facts(bias), stride, padding, dilation, groups)
    # Without channels there is nothing to compute; torch's own operator says what comes of it.
    if input.shape[-3] == 0 or (too_large is not None and not limits.serves(resolved, too_large)):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    y = conv2d_fprop(batched, weight, bias, stride, sides, dilation, groups, precision, resolved, None)
    return y if input.dim() == 4 else without_batch(y)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
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
    if has_torch_function_variadic(input, weight, bias) and not torch.compiler.is_compiling():
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return ask(conv_transpose2d, arguments[:3], arguments, {"engine": engine, "precision": precision}, F.conv_transpose2d)
    require_tensors(input=input, weight=weight, bias=bias)
    resolved = resolve(engine)
    if not claims(resolved, input, (weight, bias), ("weight", "bias")):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    stride, dilation, groups = pair(stride, "stride"), pair(dilation, "dilation"), index(groups, "groups")
    padding, extra = pair(padding, "padding"), pair(output_padding, "output_padding")
    size, sides, too_large = _conv_transpose2d_sizes(
        facts(input), facts(weight), facts(bias), stride, padding, extra, dilation, groups
    )
    if too_large is not None and not limits.serves(resolved, too_large):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    batched = input if input.dim() == 4 else input.unsqueeze(0)
    x = conv2d_dgrad(batched, weight, size, stride, sides, dilation, groups, precision, resolved, None)
    if bias is not None:
        x = x + lowered(gradient_with_history(bias, input, weight)).view(1, -1, 1, 1)
    return x if input.dim() == 4 else without_batch(x)
