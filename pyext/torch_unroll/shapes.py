"""Sizes, layouts and argument checks that several ops share. Errors have torch's types; they name the argument, the expected
value and the actual one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from typing import Any, cast

import torch
from torch import Tensor

from torch_unroll.autocast import lowered_dtype
from torch_unroll.kernels.offsets import offset_dtype
from torch_unroll.kernels.shapes import Pair
from torch_unroll.tracing import is_tracing, traced_size

#: A size argument of a public function, as torch's stubs declare it: an int, or a sequence of one or two.
Size = int | Sequence[int]


def index(value: Any, name: str, overflow: type[Exception] = ValueError) -> int:
    """A size as an int; under a compiler it may be symbolic, and in a trace a tensor.

    Accepts whatever `operator.index` accepts (integers of numpy, integer tensors of one element) except bools.

    Raises:
        TypeError: not an integer.
        overflow: the integer does not fit into 64 bits.
    """
    if isinstance(value, torch.SymInt):
        return cast(int, value)
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    recorded = traced_size(value)
    if recorded is not None:
        return cast(int, recorded)
    if type(value) is not int:
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{name}: expected an int, got {value!r}") from None
    if not -(2**63) <= value < 2**63:
        raise overflow(f"{name}: expected a number that 64 bits hold, got {value}")
    return cast(int, value)


def pair(value: Any, name: str) -> Pair:
    """A torch-style size argument (an int, or a tuple or list of one or two) as (height, width)."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int and max(value) < 2**63:
        return value  # a fast path for the usual case
    if not isinstance(value, (tuple, list)):
        both = index(value, name)
        return (both, both)
    # torch rejects a bool as the first number of a sequence, and accepts it as an int in the second place.
    sizes = [index(int(size) if i > 0 and isinstance(size, bool) else size, name, TypeError) for i, size in enumerate(value)]
    if len(sizes) not in (1, 2):
        raise RuntimeError(f"{name}: expected one int or two, got {len(sizes)}")
    return (sizes[0], sizes[-1])


def _unless_unknown(comparison: Any, otherwise: bool) -> bool:
    """The result of a comparison of sizes; `otherwise` if a compiler cannot decide it, because the sizes depend on data, as those
    of x[mask] do."""
    if not torch.compiler.is_compiling() and not isinstance(comparison, torch.SymBool):
        return bool(comparison)  # `comparison` is a tensor in a trace; under torch.compile, even a bool may be symbolic
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true

    return guard_or_true(comparison) if otherwise else guard_or_false(comparison)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether torch regards a 4-D tensor as channels_last, which its strides decide; ambiguous strides count as contiguous.

    The rule is that of c10's `is_channels_last_strides_2d`. Where a compiler cannot decide a comparison, extents are assumed to
    be above 0, and strides not to be in the order of channels_last.
    """
    (N, C, H, W), (n, c, h, w) = tensor.shape, tensor.stride()
    if not tensor._has_symbolic_sizes_strides:
        return c > 0 and w >= c * C and h >= w * W and n >= h * H != c and min(N, C, H, W) > 0
    plausible = (c > 0, h * H != c, N > 0, C > 0, H > 0, W > 0)
    nested = (w >= c * C, h >= w * W, n >= h * H)
    return all(_unless_unknown(fact, True) for fact in plausible) and all(_unless_unknown(fact, False) for fact in nested)


def is_dense(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor of this size and these strides fills its memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    for extent, step in sorted(zip(size, stride, strict=True), key=lambda dimension: dimension[1]):
        if extent != 1:
            if step != expected:
                return False
            expected *= extent
    return True


def output_memory_format(*tensors: Tensor) -> torch.memory_format:
    """torch's rule for the layout of an output: channels_last if any of these tensors is."""
    return torch.channels_last if any(is_channels_last(tensor) for tensor in tensors) else torch.contiguous_format


def convolved(extent: int, filter_extent: int, stride: int, padding: int, dilation: int) -> int:
    """The output extent of a convolution; `padding` is the sum of both sides. 0 or less means that the filter does not fit."""
    return (extent + padding - dilation * (filter_extent - 1) - 1) // stride + 1


def pooled(extent: int, window: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The output extent of a pooling; `padding` is that of one side. With ceil_mode, the last window must start inside the input
    or its left padding."""
    reach = extent + 2 * padding - dilation * (window - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    starts = (extent + padding - 1) // stride + 1  # windows that start inside the input or its left padding
    minimum = torch.sym_min if isinstance(extent, torch.SymInt) else min  # min would tie a graph to which of the two is smaller
    return minimum(-(-reach // stride) + 1, starts)


def convolved_size(
    x_size: Sequence[int], w_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Pair:
    """Returns (P, Q) of a convolution of (H, W) by (R, S); `padding` is top, bottom, left, right."""
    P = convolved(x_size[0], w_size[0], stride[0], padding[0] + padding[1], dilation[0])
    Q = convolved(x_size[1], w_size[1], stride[1], padding[2] + padding[3], dilation[1])
    return P, Q


def unfolded_size(
    x_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Pair:
    """Returns (P, Q), the numbers of window positions down and across (H, W); `padding` is applied on both sides."""
    return convolved_size(x_size, kernel_size, stride, (padding[0], padding[0], padding[1], padding[1]), dilation)


def pooled_size(
    x_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Pair:
    """Returns (P, Q) of a pooling of (H, W); `padding` is applied on both sides."""
    P, Q = (pooled(x_size[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
    return P, Q


def empty_rows_like(sequence: Tensor) -> Tensor:
    """Returns an uninitialised tensor laid out like `sequence` if its last dimension is contiguous, else contiguous."""
    contiguous = sequence.stride(-1) == 1 or sequence.shape[-1] == 1
    return torch.empty_like(sequence if contiguous else sequence.contiguous())


def require(condition: bool, message: str) -> None:
    """Raises RuntimeError, as torch does for a wrong shape, if a condition is false. If a compiler cannot decide the condition,
    because sizes depend on data, the graph asserts it when it runs."""
    if condition is True:
        return
    if isinstance(condition, torch.SymBool) or (torch.compiler.is_compiling() and condition is not False):
        from torch.fx.experimental.symbolic_shapes import guard_or_true

        if guard_or_true(condition):
            torch._check(condition)
            return
        condition = False
    if not condition:
        raise RuntimeError(message)


def require_each(conditions: Iterable[bool], message: str) -> None:
    """Requires each of several conditions. Joining the conditions with `and` would force a compiler to decide those on symbolic
    sizes while it traces."""
    for condition in conditions:
        require(condition, message)


def remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a check of sizes so that it caches its results: a repeated call that is not compiled or traced costs one look-up."""
    cached = lru_cache(maxsize=4096)(check)

    def call(*facts: Any) -> Any:
        # Under torch.jit.trace, sizes are tensors that belong to the graph being recorded, so they must not be cached.
        if torch.compiler.is_compiling() or is_tracing():
            return check(*facts)
        try:
            return cached(*facts)
        except TypeError:  # symbolic sizes have no hash
            return check(*facts)

    return call


def facts(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What a check needs to know of a tensor: its shape, its dtype after autocast, and its device."""
    return None if tensor is None else (tensor.shape, lowered_dtype(tensor), tensor.device)


def either(*conditions: bool) -> bool:
    """Whether one of the conditions holds. For symbolic sizes this is a symbolic condition, which need not be decided yet."""
    if torch.compiler.is_compiling() or any(isinstance(condition, torch.SymBool) for condition in conditions):
        return reduce(operator.or_, conditions)
    return any(conditions)


#: Arguments that may be None.
_OPTIONAL = frozenset(("bias", "h0", "batch_sizes", "lengths", "b_ih", "b_hh"))


def require_tensors(**arguments: Tensor | None) -> None:
    """Raises TypeError, as torch does, for an argument that is not a tensor; arguments named in `_OPTIONAL` may be None."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (value is None and name in _OPTIONAL):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def pooling_offset_dtype(cells: int) -> torch.dtype:
    """The dtype of an offset into a window of this many cells.

    255 in uint8, and -1 in the other dtypes, marks a window that holds no cell of the plane.
    """
    return cast(torch.dtype, getattr(torch, offset_dtype(cells)))


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as the kernel table has it, such as "float32"."""
    return str(dtype).removeprefix("torch.")
