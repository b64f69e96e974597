"""What `torch.jit.trace` asks of a call: that it can be recorded, saved, and replayed with other sizes.

In a trace, the sizes of a tensor are tensors without dimensions, and so is what is computed of them. None of them may stand in a
list of numbers that an operator takes: torch's own Python bindings alone can record such a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_C: Any = torch._C  # of whose functions for tracing torch declares but one


def is_tracing() -> bool:
    """Whether `torch.jit.trace` records what happens."""
    return _C._get_tracing_state() is not None


@contextmanager
def _paused() -> Iterator[None]:
    """Within it nothing is recorded, and sizes are numbers."""
    state = _C._get_tracing_state()
    _C._set_tracing_state(None)
    try:
        yield
    finally:
        _C._set_tracing_state(state)


def unrecorded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel of an operator, which is recorded as a whole: nothing within it belongs to the trace."""

    def run(*inputs: Any) -> Any:
        if not is_tracing():
            return kernel(*inputs)
        with _paused():
            return kernel(*inputs)

    return run


def apply_unseen(function: type[Function], tensor: Tensor, *others: Tensor) -> Tensor:
    """Applies a Function whose result holds the same numbers as its first tensor, for which a trace takes it: a trace that holds
    a Function of Python's cannot be saved."""
    if not is_tracing():
        return function.apply(tensor, *others)
    recorded = _C._get_value_trace(tensor)
    with _paused():
        result = function.apply(tensor, *others)
    _C._set_value_trace(result, recorded)
    return result


def followed(size: Any) -> Tensor | None:
    """An integer that a trace can follow, as a tensor without dimensions; None for anything else."""
    if not isinstance(size, Tensor) or not is_tracing() or size.numel() != 1 or size.is_floating_point() or size.is_complex():
        return None
    return size.reshape(()).to("cpu", torch.int64)


def holds_tensors(numbers: Any) -> bool:
    """Whether any number of a tuple or list, or within those, is a tensor."""
    return isinstance(numbers, Tensor) or (isinstance(numbers, (tuple, list)) and any(map(holds_tensors, numbers)))


def _stacked(numbers: Any) -> Any:
    """Numbers as one tensor; strings and switches as they are."""
    if isinstance(numbers, (tuple, list)):
        return torch.stack([_stacked(number) for number in numbers])
    return torch.tensor(numbers, dtype=torch.int64, device="cpu") if type(numbers) is int else numbers


def recordable(library: torch.library.Library, schema: str, op: Any, arity: int) -> Callable[..., Any]:
    """Registers the twin of an operator that takes a tensor for each number and each list of numbers; yields the function to call
    with numbers that are tensors. The first `arity` arguments are the operator's tensors. An overload would not do: opcheck takes
    no operator that has any."""
    name, _, arguments = schema.partition("(")
    library.define(f"{name}_recorded({arguments.replace('SymInt[]', 'Tensor').replace('SymInt', 'Tensor')}")

    def run(*inputs: Any) -> Any:
        return op(*inputs[:arity], *(value.tolist() if isinstance(value, Tensor) else value for value in inputs[arity:]))

    library.impl(f"{name}_recorded", unrecorded(run), "CompositeImplicitAutograd")
    twin = getattr(torch.ops.torch_unroll, f"{name}_recorded").default
    return lambda *inputs: twin(*inputs[:arity], *map(_stacked, inputs[arity:]))
