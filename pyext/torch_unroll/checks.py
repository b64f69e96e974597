"""What every operator asks of its inputs before anything addresses memory by them, however the call came about.

Front ends word the mistakes of a public call as torch does; graphs, traces and `torch.ops.torch_unroll` know no front end. A
check reads shapes, dtypes, devices and layouts, never data, so its answer is kept: the same call a second time costs a look-up.
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
    """Tells whether other tensors are of the same kind as these, or is None where nothing can tell.

    A kind is what torch.compile guards a graph by: the tensors' types, dispatch keys, dtypes, devices and sizes, compared in C++.
    Comparing the same facts as Python objects would take several times as long.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    any_strides: Any = [[None] * tensor.dim() for tensor in present]
    guards = TensorGuards(*present, dynamic_dims_sizes=None, dynamic_dims_strides=any_strides)
    if not guards.check(*present):  # they never take one tensor for two
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
    """Inputs with tuples in place of lists, as which the dispatcher hands numbers on."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in inputs)


def remembering(check: Callable[..., None], arity: int) -> Callable[..., None]:
    """A check that is made once for each kind of call; the first `arity` inputs are tensors or None, the others hashable.

    Where a shape is looked up, making it a Python object and hashing it is the larger part of the cost, so the kinds last seen
    with the same numbers are tried first: one that does not fit fails at its first tensor.
    """
    latest: dict[Any, list[_IsKind]] = {}
    kinds: dict[Any, list[_IsKind]] = {}

    def call(*inputs: Any) -> None:
        end = arity
        while inputs[end - 1] is None:  # most often the optional tensors are left out from the last one on
            end -= 1
        tensors, numbers = inputs[:end], inputs[end:]
        try:
            for is_kind in latest[numbers]:
                if is_kind(*tensors):
                    return
        except KeyError:
            pass
        except TypeError:  # a list, which has no hash
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
    """Whether extents stand for those of later calls: asking how two of them compare would tie a graph to the answer, which
    every later call is asked for itself."""
    for extent in extents:  # noqa: SIM110 (a generator costs twice as much)
        if type(extent) is not int and isinstance(extent, torch.SymInt):
            return True
    return False


def is_strided(tensor: Tensor) -> bool:
    """Whether memory, shape and strides say all of a tensor: no sparse or other layout, not nested, not quantized."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized


def is_traced(*extents: int) -> bool:
    """The same, in code that Dynamo reads too: its sizes look like numbers, and a message that holds one would tie the graph."""
    return torch.compiler.is_dynamo_compiling() or is_symbolic(*extents)


def require_strided(tensor: Tensor, name: str) -> None:
    """No sparse layout, nor any other whose memory has no strides, nor several tensors in one, nor quantized numbers."""
    if is_strided(tensor):
        return
    kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else None
    if kind:
        raise RuntimeError(f"{name}: expected a strided tensor that is not {kind}, got one of layout {tensor.layout} that is")
    raise RuntimeError(f"{name}: expected a strided tensor, got layout {tensor.layout}")


def unwrapped(tensor: Tensor) -> Tensor:
    """What torch.func's transforms have wrapped: a wrapper does not always tell its layout."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def require_alike(like: Tensor, like_name: str, **others: Tensor | None) -> None:
    """One dtype and one device, and no layout but torch's strided one."""
    require_strided(like, like_name)
    for name, tensor in others.items():
        if tensor is not None:
            require_place(tensor, name, like, like_name)
            require(tensor.dtype == like.dtype, f"{name}: expected {like.dtype} like {like_name}, got {tensor.dtype}")


def require_place(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """The device of another tensor, and a layout that can be addressed."""
    require_strided(tensor, name)
    require(tensor.device == like.device, f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")


def require_shape(tensor: Tensor | None, name: str, *expected: int) -> None:
    """Exactly these extents; None stands for a tensor left out."""
    if tensor is None:
        return
    size = tensor.shape
    if not is_traced(*size, *expected):
        if size != expected:
            raise RuntimeError(f"{name}: expected shape {expected}, got {tuple(size)}")
    elif tensor.dim() == len(expected):
        for extent, wanted in zip(size, expected, strict=True):
            torch._check(extent == wanted)  # asked when the graph runs, where it is not known before
    else:
        raise RuntimeError(f"{name}: expected {len(expected)} dimensions, got {tensor.dim()}")


def require_rank(tensor: Tensor, name: str, letters: str) -> None:
    """As many dimensions as there are letters."""
    require(tensor.dim() == len(letters), f"{name}: expected ({', '.join(letters)}), got shape {tuple(tensor.shape)}")


def require_numbers(values: Sequence[int], name: str, count: int, least: int, most: int = MOST) -> None:
    """So many numbers within a range; `most` is by default what an int64 holds."""
    message = f"{name}: expected {count} numbers from {least} to {most}, got {tuple(values)}"
    require(len(values) == count, message)
    require_each((value >= least for value in values), message)
    require_each(((most == MOST and is_symbolic(value)) or value <= most for value in values), message)


def require_one_of(value: str, name: str, known: Sequence[str]) -> None:
    """A name that the kernels know."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


_INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def check_lengths(lengths: Tensor | None, N: int, like: Tensor, like_name: str) -> None:
    """How many steps of each sample count: (N), integers, on the device of another tensor; None stands for all of them."""
    if lengths is not None:
        require_place(lengths, "lengths", like, like_name)
        require(lengths.dtype in _INTEGERS, f"lengths: expected an integer dtype, got {lengths.dtype}")
        require_shape(lengths, "lengths", N)


def widened(lengths: Tensor | None) -> Tensor | None:
    """As int64, which compares with every number of steps, and which kernels read."""
    if lengths is None:
        return None
    wide = lengths.to(torch.int64)
    return wide.masked_fill(wide < 0, MOST) if lengths.dtype == torch.uint64 else wide  # those that int64 does not hold wrap
