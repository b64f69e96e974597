"""The checks that an operator makes before addresses are computed from its inputs, however it was called.

The public functions report mistakes as torch does, but graphs, traces and `torch.ops.torch_unroll` bypass these functions. An
operator's check reads no data of tensors, so it is cached (`remembering`), and a repeated call costs only a look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards

from torch_unroll.shapes import require, require_each

MOST = 2**63 - 1
MOST_INT32 = 2**31 - 1


_MOST_KEYS, _MOST_KINDS, _MOST_LATEST = 8192, 16, 4

_IsKind = Callable[..., bool]


def _is_kind(tensors: tuple[Tensor | None, ...]) -> _IsKind | None:
    """A predicate that is true for tensors of the same kind as these; None if torch offers no reliable one.

    A kind is what torch.compile guards a graph by, without the strides: types, dispatch keys, dtypes, devices, sizes and
    requires_grad of the tensors, compared in C++. Comparing the same facts as Python objects would take several times as long.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    any_strides: Any = [[None] * tensor.dim() for tensor in present]
    guards = TensorGuards(*present, dynamic_dims_sizes=None, dynamic_dims_strides=any_strides)
    if not guards.check(*present):  # guards always fail if one tensor is passed twice
        return None
    if len(present) == len(tensors):
        return guards.check
    places = [place for place, tensor in enumerate(tensors) if tensor is not None]
    select = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))
    absent = [place for place, tensor in enumerate(tensors) if tensor is None]

    def is_kind(*tensors: Tensor | None) -> bool:
        for place in absent:
            if tensors[place] is not None:
                return False
        return guards.check(*select(tensors))

    return is_kind


def hashable(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs with tuples in place of the lists that the dispatcher passes."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in inputs)


def remembering(check: Callable[..., None], arity: int) -> Callable[..., None]:
    """Wraps a check so that it runs once for each kind of call, as long as the cache remembers the kind. The first `arity` inputs
    are tensors or None; the others are hashable, or lists of hashable values.

    Most of the cost of a look-up by shape goes into creating and hashing the Python object of the shape. The kinds that were
    seen last with the same `numbers` (the inputs after the tensors) are therefore tried first, which is cheap: a kind that does
    not match usually fails at its first tensor.
    """
    latest: dict[Any, list[_IsKind]] = {}
    kinds: dict[Any, list[_IsKind]] = {}

    def call(*inputs: Any) -> None:
        end = arity
        while inputs[end - 1] is None:  # usually it is the last optional tensors that are None
            end -= 1
        tensors, numbers = inputs[:end], inputs[end:]
        try:
            for is_kind in latest[numbers]:
                if is_kind(*tensors):
                    return
        except KeyError:
            pass
        except TypeError:  # a list is not hashable
            call(*hashable(inputs))
            return
        first = inputs[0]
        key = (None if getattr(first, "is_nested", True) else first.shape, numbers)
        known = next((is_kind for is_kind in kinds.get(key, ()) if is_kind(*tensors)), None)
        if known is None:
            check(*inputs)
            known = _is_kind(tensors)
            if known is None:
                return
            if len(kinds) >= _MOST_KEYS:
                kinds.clear()
                latest.clear()
            kinds[key] = [known, *kinds.get(key, ())][:_MOST_KINDS]
        latest[numbers] = [known, *latest.get(numbers, ())][:_MOST_LATEST]

    return call


def is_symbolic(*extents: int) -> bool:
    """Whether any extent is symbolic. Comparing symbolic extents would specialize the graph to the result, and is unnecessary,
    since the operator checks the extents of every later call."""
    for extent in extents:  # noqa: SIM110 (a generator costs twice as much)
        if type(extent) is not int and isinstance(extent, torch.SymInt):
            return True
    return False


def is_strided(tensor: Tensor) -> bool:
    """Whether a tensor is strided and neither nested nor quantized: memory, shape and strides then describe it completely."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def is_traced(*extents: int) -> bool:
    """`is_symbolic` for code that Dynamo may trace. While Dynamo traces, sizes look like plain integers, and formatting a size
    into a message would specialize the graph to that size."""
    return torch.compiler.is_dynamo_compiling() or is_symbolic(*extents)


def require_strided(tensor: Tensor, name: str) -> None:
    """Raises RuntimeError for a tensor that is not strided: sparse, nested or quantized."""
    if is_strided(tensor):
        return
    kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else None
    if kind:
        raise RuntimeError(f"{name}: expected a strided tensor that is not {kind}, got one of layout {tensor.layout} that is")
    raise RuntimeError(f"{name}: expected a strided tensor, got layout {tensor.layout}")


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor without the wrappers of torch.func's transforms, which do not always report its layout."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def require_alike(like: Tensor, like_name: str, **others: Tensor | None) -> None:
    """Requires that all tensors are strided and have the dtype and device of `like`; None passes."""
    require_strided(like, like_name)
    for name, tensor in others.items():
        if tensor is not None:
            require_place(tensor, name, like, like_name)
            require(tensor.dtype == like.dtype, f"{name}: expected {like.dtype} like {like_name}, got {tensor.dtype}")


def require_place(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """Requires that a tensor is strided and on the device of `like`."""
    require_strided(tensor, name)
    require(tensor.device == like.device, f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")


def require_shape(tensor: Tensor | None, name: str, *expected: int) -> None:
    """Requires exactly these extents; a tensor that is None passes."""
    if tensor is None:
        return
    size = tensor.shape
    if not is_traced(*size, *expected):
        if size != expected:
            raise RuntimeError(f"{name}: expected shape {expected}, got {tuple(size)}")
    elif tensor.dim() == len(expected):
        for extent, expected_extent in zip(size, expected, strict=True):
            torch._check(extent == expected_extent)  # if the result is not known yet, the graph checks it when it runs
    else:
        raise RuntimeError(f"{name}: expected {len(expected)} dimensions, got {tensor.dim()}")


def require_rank(tensor: Tensor, name: str, letters: str) -> None:
    """Requires as many dimensions as there are letters."""
    require(tensor.dim() == len(letters), f"{name}: expected ({', '.join(letters)}), got shape {tuple(tensor.shape)}")


def require_numbers(values: Sequence[int], name: str, count: int, least: int, most: int = MOST) -> None:
    """Requires `count` numbers from `least` to `most`, which by default is the largest int64."""
    message = f"{name}: expected {count} numbers from {least} to {most}, got {tuple(values)}"
    require(len(values) == count, message)
    require_each((value >= least for value in values), message)
    require_each(((most == MOST and is_symbolic(value)) or value <= most for value in values), message)


def require_one_of(value: str, name: str, known: Sequence[str]) -> None:
    """Raises ValueError unless the value is one of the known names."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


_INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def check_lengths(lengths: Tensor | None, N: int, like: Tensor, like_name: str) -> None:
    """Checks `lengths`, the number of valid steps of each sample: (N), integers, on the device of `like`. None passes."""
    if lengths is not None:
        require_place(lengths, "lengths", like, like_name)
        require(lengths.dtype in _INTEGERS, f"lengths: expected an integer dtype, got {lengths.dtype}")
        require_shape(lengths, "lengths", N)


def widened(lengths: Tensor | None) -> Tensor | None:
    """The lengths as int64, the dtype that kernels read."""
    if lengths is None:
        return None
    wide = lengths.to(torch.int64)
    return wide.masked_fill(wide < 0, MOST) if lengths.dtype == torch.uint64 else wide  # 2^63 or more has become negative
