"""Sizes, layouts and argument checks, shared by every op. Errors are of torch's types and name argument, expected and given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from typing import Any, cast

import torch
from torch import Tensor

from torch_unroll.autocast import lowered_dtype
from torch_unroll.kernels.offsets import offset_dtype
from torch_unroll.programs import is_transformed
from torch_unroll.tracing import followed, is_tracing

Pair = tuple[int, int]
#: A size argument of a function as it comes, an int or one or two of them: what torch's own stubs say.
Size = int | Sequence[int]


def index(value: Any, name: str, overflow: type[Exception] = ValueError) -> int:
    """A size as an int: whatever `operator.index` takes (numpy's integers, integer tensors of one element), but no bool, and, by
    the exception `overflow`, none that 64 bits do not hold."""
    if isinstance(value, torch.SymInt):
        return cast(int, value)
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    recorded = followed(value)
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
    """A torch-style size argument (an int, or one or two of them) as (height, width)."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int and max(value) < 2**63:
        return value  # the usual case, quickly
    if not isinstance(value, (tuple, list)):
        both = index(value, name)
        return (both, both)
    # torch takes no bool for the first of a sequence, and takes those behind it for ints.
    sizes = [index(int(size) if i > 0 and isinstance(size, bool) else size, name, TypeError) for i, size in enumerate(value)]
    if len(sizes) not in (1, 2):
        raise RuntimeError(f"{name}: expected one int or two, got {len(sizes)}")
    return (sizes[0], sizes[-1])


def _unless_unknown(comparison: Any, otherwise: bool) -> bool:
    """What a comparison of sizes says; `otherwise` where they depend on data, such as a mask, that a compiler does not see."""
    if not torch.compiler.is_compiling() and not isinstance(comparison, torch.SymBool):
        return bool(comparison)  # in a trace it is a tensor; torch.compile has symbols that say they are bools
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true

    return guard_or_true(comparison) if otherwise else guard_or_false(comparison)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes a 4-D tensor for channels_last: by its strides, ambiguous ones counting as contiguous.

    The same as c10's `is_channels_last_strides_2d`. Extents that a compiler does not know are taken for above 0.
    """
    (N, C, H, W), (n, c, h, w) = tensor.shape, tensor.stride()
    if not tensor._has_symbolic_sizes_strides:
        return c > 0 and w >= c * C and h >= w * W and n >= h * H != c and min(N, C, H, W) > 0
    plausible = (c > 0, h * H != c, N > 0, C > 0, H > 0, W > 0)
    nested = (w >= c * C, h >= w * W, n >= h * H)
    return all(_unless_unknown(fact, True) for fact in plausible) and all(_unless_unknown(fact, False) for fact in nested)


def is_dense(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether these strides lay out every element once and leave no gap, in whatever order of dimensions."""
    expected = 1
    for extent, step in sorted(zip(size, stride, strict=True), key=lambda dimension: dimension[1]):
        if extent != 1:
            if step != expected:
                return False
            expected *= extent
    return True


def _holds(condition: bool) -> bool:
    """Whether a comparison of sizes is true; false where only the data of a later call will tell."""
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition


def output_memory_format(*tensors: Tensor) -> torch.memory_format:
    """torch's rule for the layout of an output: channels_last if any of these is."""
    return torch.channels_last if any(is_channels_last(tensor) for tensor in tensors) else torch.contiguous_format


def convolved(extent: int, filter_extent: int, stride: int, padding: int, dilation: int) -> int:
    """The output extent of a convolution; `padding` is both sides' together. 0 or less means the filter does not fit."""
    return (extent + padding - dilation * (filter_extent - 1) - 1) // stride + 1


def pooled(extent: int, window: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The output extent of a pooling; `padding` is one side's. With ceil_mode the last window must start inside the input or
    its left padding."""
    reach = extent + 2 * padding - dilation * (window - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    starts = (extent + padding - 1) // stride + 1  # of windows within the input or its left padding
    smaller = torch.sym_min if isinstance(extent, torch.SymInt) else min  # of symbolic sizes, min would decide which
    return smaller(-(-reach // stride) + 1, starts)


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
    """Returns (P, Q), how many windows `unfold` finds in (H, W); `padding` is one side's, for both sides."""
    return convolved_size(x_size, kernel_size, stride, (padding[0], padding[0], padding[1], padding[1]), dilation)


def pooled_size(
    x_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Pair:
    """Returns (P, Q) of a pooling of (H, W); `padding` is one side's, for both sides."""
    P, Q = (pooled(x_size[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in (0, 1))
    return P, Q


def empty_rows_like(sequence: Tensor) -> Tensor:
    """Returns an uninitialised tensor laid out like `sequence`, but with its last dimension contiguous."""
    contiguous = sequence.stride(-1) == 1 or sequence.shape[-1] == 1
    return torch.empty_like(sequence if contiguous else sequence.contiguous())


def require(condition: bool, message: str) -> None:
    """torch's exception for a wrong shape. Of sizes that depend on data, which a compiler does not have, a graph asserts it
    where it runs."""
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
    """The same for several conditions: joined by `and`, those on symbolic sizes would have to be decided one after the other."""
    for condition in conditions:
        require(condition, message)


def remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check of sizes, whose answers are kept: the same call a second time costs a look-up."""
    cached = lru_cache(maxsize=4096)(check)

    def call(*facts: Any) -> Any:
        if torch.compiler.is_compiling() or is_tracing():  # sizes of a trace are tensors
            return check(*facts)
        try:
            return cached(*facts)
        except TypeError:  # symbolic sizes have no hash
            return check(*facts)

    return call


def facts(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """What a check asks of a tensor that autocast may lower: shape, the dtype it then has, device."""
    return None if tensor is None else (tensor.shape, lowered_dtype(tensor), tensor.device)


def either(*conditions: bool) -> bool:
    """Whether one of the conditions holds; where they are on symbolic sizes, a condition that need not be decided at once."""
    if torch.compiler.is_compiling() or any(isinstance(condition, torch.SymBool) for condition in conditions):
        return reduce(operator.or_, conditions)
    return any(conditions)


#: Arguments that may be left out.
_OPTIONAL = frozenset(("bias", "h0", "batch_sizes", "lengths", "b_ih", "b_hh"))


def require_tensors(**arguments: Tensor | None) -> None:
    """torch's exception for an argument that is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (value is None and name in _OPTIONAL):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def without_batch(batch_of_one: Tensor) -> Tensor:
    """The result for an input without a batch; in place, since torch's results are no views of something else, but where the
    call is recorded or transformed."""
    if is_transformed() or is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return batch_of_one.squeeze(0)
    return batch_of_one.squeeze_(0)


def pooling_offset_dtype(cells: int) -> torch.dtype:
    """Returns the dtype in which the chosen cells of windows of that many cells are kept."""
    return cast(torch.dtype, getattr(torch, offset_dtype(cells)))
