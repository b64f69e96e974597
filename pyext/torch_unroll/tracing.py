"""What `torch.jit.trace` requires of a call: it must be recordable, and the recording must replay with other sizes.

In a trace, the sizes of a tensor are tensors without dimensions, and so is everything computed from them. The list arguments of
this package's operators must not contain such tensors, since only the bindings of torch's own functions can record a list that
does; `recordable` makes operators that take one tensor in place of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_C: Any = torch._C  # torch's stubs declare only one of its functions for tracing


def is_tracing() -> bool:
    """Whether `torch.jit.trace` is recording."""
    return _C._get_tracing_state() is not None


@contextmanager
def _paused() -> Iterator[None]:
    """Pauses the recording; meanwhile, sizes are plain numbers."""
    state = _C._get_tracing_state()
    _C._set_tracing_state(None)
    try:
        yield
    finally:
        _C._set_tracing_state(state)


def unrecorded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an operator's kernel so that nothing inside it is recorded: the trace contains the operator as a whole."""

    def run(*inputs: Any) -> Any:
        if not is_tracing():
            return kernel(*inputs)
        with _paused():
            return kernel(*inputs)

    return run


def apply_unseen(function: type[Function], tensor: Tensor, *others: Tensor) -> Tensor:
    """Applies a Function whose result has the values of its first tensor. A trace regards the result as that tensor, since a
    trace that contains a Python Function cannot be saved."""
    if not is_tracing():
        return function.apply(tensor, *others)
    recorded = _C._get_value_trace(tensor)
    with _paused():
        result = function.apply(tensor, *others)
    _C._set_value_trace(result, recorded)
    return result


def traced_size(size: Any) -> Tensor | None:
    """A size that a trace records (an integer tensor of one element), as an int64 tensor without dimensions on the CPU; None for
    anything else."""
    if not isinstance(size, Tensor) or not is_tracing() or size.numel() != 1 or size.is_floating_point() or size.is_complex():
        return None
    return size.reshape(()).to("cpu", torch.int64)


def holds_tensors(numbers: Any) -> bool:
    """Whether a value, or any element of a nested tuple or list, is a tensor."""
    return isinstance(numbers, Tensor) or (isinstance(numbers, (tuple, list)) and any(map(holds_tensors, numbers)))


def _stacked(numbers: Any) -> Any:
    """A number, or a list of numbers, as one tensor; tensors, strings, bools and None unchanged."""
    if isinstance(numbers, (tuple, list)):
        return torch.stack([_stacked(number) for number in numbers])
    return torch.tensor(numbers, dtype=torch.int64, device="cpu") if type(numbers) is int else numbers


def recordable(library: torch.library.Library, schema: str, op: Any, arity: int) -> Callable[..., Any]:
    """Registers a twin of an operator; the twin takes a tensor in place of each integer and each list of integers.

    The twin is an operator of its own, because opcheck accepts no operator with overloads. The first `arity` arguments are the
    operator's tensors.

    Returns:
        A function that accepts the operator's arguments, where numbers may be tensors, and calls the twin.
    """
    name, _, arguments = schema.partition("(")
    library.define(f"{name}_recorded({arguments.replace('SymInt[]', 'Tensor').replace('SymInt', 'Tensor')}")

    def run(*inputs: Any) -> Any:
        return op(*inputs[:arity], *(value.tolist() if isinstance(value, Tensor) else value for value in inputs[arity:]))

    library.impl(f"{name}_recorded", unrecorded(run), "CompositeImplicitAutograd")
    twin = getattr(torch.ops.torch_unroll, f"{name}_recorded").default
    return lambda *inputs: twin(*inputs[:arity], *map(_stacked, inputs[arity:]))
