"""Two-dimensional convolution and its transpose, with the signatures of torch.nn.functional."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from torch_unroll.autocast import lowered
from torch_unroll.calls import serving_engine, with_batch, without_batch
from torch_unroll.engines import limits
from torch_unroll.engines.interface import Padding
from torch_unroll.history import gradient_with_history
from torch_unroll.kernels.shapes import Pair
from torch_unroll.ops.conv2d import conv2d_dgrad, conv2d_fprop
from torch_unroll.ops.registration import operations
from torch_unroll.prepared.shortcut import Shortcuts
from torch_unroll.shapes import (
    Size,
    either,
    facts,
    index,
    pair,
    remembered,
    require,
    require_each,
)
from torch_unroll.torch_function import ask


def _require_common(input: Any, weight: Any, bias: Any, stride: Pair, dilation: Pair, groups: int) -> None:
    """The checks that convolution and its transpose have in common. A tensor is passed as the tuple that `facts` returns."""
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
    """torch's `padding` argument as (top, bottom, left, right). If "same" requires an odd number of rows or columns, the extra
    one is added below or on the right."""
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
    """Checks a call of conv2d.

    Returns:
        The padding of each side, and the reason why the call is too large for the compiled kernels, or None.
    """
    _require_common(input, weight, bias, stride, dilation, groups)
    x, w = input[0], weight[0]
    sides = _four_sided(padding, w, stride, dilation)
    _require_channels(x, w[1] * groups, bias, w[0])
    padded = (x[-2] + sides[0] + sides[1], x[-1] + sides[2] + sides[3])
    spans = (dilation[0] * (w[2] - 1) + 1, dilation[1] * (w[3] - 1) + 1)
    require_each(
        (padded[i] >= spans[i] for i in (0, 1)),
        f"weight: expected a filter within the padded input of {padded}, got one that spans {spans}",
    )
    size = [(padded[i] - spans[i]) // stride[i] + 1 for i in (0, 1)]
    x_size, y_size = (1, *x[-3:]), (1, w[0], *size)
    return sides, limits.conv2d(x_size, w, y_size, stride, sides[::2], dilation, groups)


@remembered
def _conv_transpose2d_sizes(
    input: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, extra: Pair, dilation: Pair, groups: int
) -> tuple[Pair, Padding, str | None]:
    """Checks a call of conv_transpose2d.

    Returns:
        The (H, W) of its output, the padding of the convolution that it transposes, and the reason why that convolution is too
        large for the compiled kernels, or None.
    """
    require_each((number >= 0 for number in padding), f"padding: expected numbers of 0 or more, got {padding}")
    require_each((number >= 0 for number in extra), f"output_padding: expected numbers of 0 or more, got {extra}")
    for i in (0, 1):
        fits = stride[i] <= 0 or dilation[i] <= 0 or extra[i] < max(stride[i], dilation[i])
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
    # Each row of output_padding takes the place of a row of bottom padding, so that the convolution of the output yields exactly
    # as many rows as the input has.
    sides = (padding[0], padding[0] - extra[0], padding[1], padding[1] - extra[1])
    x_size, y_size = (1, w[1] * groups, H, W), (1, *x[-3:])
    return (H, W), sides, limits.conv2d(x_size, w, y_size, stride, padding, dilation, groups)


_SHORTCUTS = Shortcuts(operations["conv2d_fprop"])


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
    """Convolves a batch of images; equivalent to `torch.nn.functional.conv2d`.

    As in torch, `input` itself is kept for backward if `weight` requires a gradient, and `weight` if `input` does; no copy is
    kept. For each product that tensor cores compute, engines `cuda` and `cupy` pack NCHW images channels_last into workspace.

    Args:
        input: (N, C, H, W), or (C, H, W) without a batch; fp16, bf16, fp32 or fp64, with any strides.
        weight: (K, C/groups, R, S), with the dtype of input.
        bias: (K) or None.
        stride, dilation: an int or a pair.
        padding: an int, a pair, "valid", or "same" (only with a stride of 1).
        groups: a divisor of C and K.
        engine: the name of an engine, such as "cuda" (see `torch_unroll.available_engines`). None stands for the engine that
            `torch_unroll.use_engine` or TORCH_UNROLL_ENGINE names. If neither names one, floating-point calls on the GPU are
            served by the first engine that accepts them, and other calls, or sizes beyond the limits of the compiled kernels,
            by torch's own operator.
        precision: how fp32 products are computed: "tf32", "ieee", or "conv" to follow
            `torch.backends.cudnn.conv.fp32_precision`.

    Returns:
        (N, K, P, Q) with P = (H + padding − dilation·(R − 1) − 1) // stride + 1, where padding is the sum of both sides;
        channels_last if input or weight is.

    Raises:
        RuntimeError: sizes, dtypes or devices do not fit together, as in torch; or a named engine refuses the call.
    """
    options = (stride, padding, dilation, groups, engine, precision)
    if not torch.compiler.is_compiling():
        y: Tensor | None = _SHORTCUTS.take((input, weight, bias), options)
        if y is not None:
            return y
    if has_torch_function_variadic(input, weight, bias) and not torch.compiler.is_compiling():
        arguments = (input, weight, bias, stride, padding, dilation, groups)
        return ask(conv2d, arguments[:3], arguments, {"engine": engine, "precision": precision}, F.conv2d)
    resolved = serving_engine(engine, input=input, weight=weight, bias=bias)
    if resolved is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    stride, dilation, groups = pair(stride, "stride"), pair(dilation, "dilation"), index(groups, "groups")
    padding = padding if isinstance(padding, str) else pair(padding, "padding")
    sides, too_large = _conv2d_sides(facts(input), facts(weight), facts(bias), stride, padding, dilation, groups)
    # For an input without channels, there is nothing to compute; torch's own operator defines the result.
    if input.shape[-3] == 0 or (too_large is not None and not limits.serves(resolved, too_large)):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    numbers = (stride, sides, dilation, groups, precision, resolved, None)
    y = conv2d_fprop(with_batch(input), weight, bias, *numbers)
    if input.dim() == 4 and not torch.compiler.is_compiling():
        _SHORTCUTS.learn((input, weight, bias), options, numbers)
    return without_batch(y, input)


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
    """Transposed convolution, which is the input gradient of `conv2d`; equivalent to `torch.nn.functional.conv_transpose2d`.

    Args:
        input: (N, K, P, Q), or (K, P, Q) without a batch: the shape of the output of the convolution that is transposed.
        weight: (K, C/groups, R, S), the weight of that convolution.
        bias: (C) or None.
        stride, padding, dilation, groups: those of that convolution.
        output_padding: rows added below and columns added on the right; less than the larger of stride and dilation.
        engine, precision: as in `conv2d`.

    Returns:
        (N, C, H, W) with H = (P − 1)·stride − 2·padding + dilation·(R − 1) + output_padding + 1.

    Raises:
        RuntimeError: sizes, dtypes or devices do not fit together, as in torch; or a named engine refuses the call.
    """
    if has_torch_function_variadic(input, weight, bias) and not torch.compiler.is_compiling():
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return ask(conv_transpose2d, arguments[:3], arguments, {"engine": engine, "precision": precision}, F.conv_transpose2d)
    resolved = serving_engine(engine, input=input, weight=weight, bias=bias)
    if resolved is None:
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    stride, dilation, groups = pair(stride, "stride"), pair(dilation, "dilation"), index(groups, "groups")
    padding, extra = pair(padding, "padding"), pair(output_padding, "output_padding")
    size, sides, too_large = _conv_transpose2d_sizes(
        facts(input), facts(weight), facts(bias), stride, padding, extra, dilation, groups
    )
    if too_large is not None and not limits.serves(resolved, too_large):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    x = conv2d_dgrad(with_batch(input), weight, size, stride, sides, dilation, groups, precision, resolved, None)
    if bias is not None:
        x = x + lowered(gradient_with_history(bias, input, weight)).view(1, -1, 1, 1)
    return without_batch(x, input)
