"""The engines, and which of them serves a call.

`engine=None` takes the first that accepts the call, in the order of `NAMES`; a named engine never falls back: it raises with
its reason. One predicate, `refusal`, selects and explains. An engine is imported when it is first asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import torch
from torch.utils._contextlib import context_decorator

from torch_unroll.checks import require_strided, unwrapped
from torch_unroll.engines.interface import DTYPES, Engine
from torch_unroll.settings import Setting

if TYPE_CHECKING:
    from torch_unroll.engines.reference import ReferenceEngine

Function = TypeVar("Function", bound=Callable[..., Any])

#: Fastest first.
NAMES = ("cuda", "cupy", "numba", "torch")

#: What `engine=None` means. A plain global: a ContextVar breaks `fullgraph`, a thread-local goes stale under torch.compile.
default = "auto"


def check(name: str) -> str:
    """The name, if it is an engine's."""
    if name not in (*NAMES, "auto"):
        raise ValueError(f"engine: expected one of {', '.join(NAMES)} or auto, got {name!r}")
    return name


default = check(os.environ.get("TORCH_UNROLL_ENGINE", "auto") or "auto")

#: What the innermost block says whose beginning torch.compile traced; None without one. Another global, since a compiled function
#: writes back what it assigned: that would undo what blocks of other threads made of `default` meanwhile.
_traced: str | None = None


def _set_default(name: str) -> None:
    global default
    default = name


_setting = Setting(lambda: default, _set_default)


class use_engine:  # noqa: N801 (a context manager, named like torch.no_grad)
    """Makes an engine the default within a block, `with tu.use_engine("numba"): ...`, or a function that it decorates.

    The choice is global to the process, so that it holds under `torch.compile` and on autograd's threads. Where several blocks
    are open, the one entered last holds; they may end in any order.

    Raises:
        ValueError: an unknown engine.
    """

    def __init__(self, name: str):
        self.name = check(name)
        self._outer: list[str | None] = []  # what held before each block whose beginning was traced

    def __enter__(self) -> None:
        global _traced
        if torch.compiler.is_dynamo_compiling():  # which traces no lock; within one function, blocks end in order
            self._outer.append(_traced)
            _traced = self.name
        else:
            _setting.enter(self, self.name)

    def __exit__(self, *_: object) -> None:
        global _traced
        if self._outer:  # traced or, where torch.compile breaks the graph, not
            _traced = self._outer.pop()
        else:
            _setting.leave(self)

    def __call__(self, function: Function) -> Function:
        name = self.name  # torch.compile enters no object from outside of what it traces
        return cast(Function, context_decorator(lambda: use_engine(name), function))


def resolve(engine: str | None) -> str:
    """The `engine` argument of a public function as the string an op takes."""
    if engine is not None:
        return check(engine)
    return default if _traced is None else _traced


@overload
def load(name: Literal["torch"]) -> ReferenceEngine: ...
@overload
def load(name: str) -> Engine: ...
def load(name: str) -> Engine:
    """Returns an engine; raises ImportError where its packages are missing, and ValueError for an unknown name."""
    if name == "cuda":
        from torch_unroll.engines import cuda

        return cuda.ENGINE
    if name == "cupy":
        from torch_unroll.engines import cupy

        return cupy.ENGINE
    if name == "numba":
        from torch_unroll.engines.numba import engine

        return engine.ENGINE
    if name == "torch":
        from torch_unroll.engines import reference

        return reference.ENGINE
    raise ValueError(f"engine: expected one of {', '.join(NAMES)}, got {name!r}")


@cache
def refusal(name: str, op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns why an engine does not take a call, and what would change that; None if it takes the call."""
    try:
        return _predicate(name)(op, device, dtype)
    except ImportError as error:
        return str(error)


def _predicate(name: str) -> Callable[[str, torch.device, torch.dtype], str | None]:
    """Returns the function of an engine that tells why it refuses a call."""
    if name == "cuda":
        from torch_unroll.engines import cuda

        return cuda.refuses
    if name == "cupy":
        from torch_unroll.engines import cupy

        return cupy.refuses
    if name == "numba":
        from torch_unroll.engines import numba

        return numba.refuses
    from torch_unroll.engines import reference

    return reference.refuses


@cache
def select(name: str, op: str, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine for a call: the named one, or with "auto" the first that accepts."""
    reasons = []
    for candidate in NAMES if name == "auto" else (check(name),):
        reason = refusal(candidate, op, device, dtype)
        if reason is None:
            return load(candidate)
        reasons.append(f"{candidate}: {reason}")
    raise RuntimeError(f"{op}: no engine takes {dtype} on {device}; " + "; ".join(reasons))


def claims(
    engine: str, tensor: torch.Tensor, others: Sequence[torch.Tensor | None] = (), names: Sequence[str] = (), name: str = "input"
) -> bool:
    """Whether a call belongs to the engines at all, by its input and its other tensors. With "auto", what none of them is made
    for (CPU, integers, complex, sparse, nested, quantized) goes to torch's own operator. Where there are more tensors than names,
    those from the last name on are a list of that name.

    Raises:
        RuntimeError: a named engine is to take a tensor that has no strides, or is nested or quantized.
    """
    if engine == "auto" and not (tensor.is_cuda and tensor.dtype in DTYPES):
        return False
    tensors = (tensor, *others)
    transformed = torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()
    if transformed:
        tensors = tuple(None if other is None else unwrapped(other) for other in tensors)
    for other in tensors:
        if other is not None and (other.layout is not torch.strided or other.is_nested or other.is_quantized):
            break
    else:
        return True
    if engine == "auto":
        return False
    if len(names) < len(others):
        names = (*names[:-1], *(f"{names[-1]}[{place}]" for place in range(len(others) - len(names) + 1)))
    for place, other in zip((name, *names), tensors, strict=True):
        if other is not None:
            require_strided(other, place)
    return True


def resolve_precision(switch: str, tensor: torch.Tensor) -> str:
    """ "tf32" or "ieee": how a product is computed. `switch` is "conv" or "rnn", torch's switch that governs it, or the
    answer itself.

    Products never inherit matmul's switch. Read when the op runs, as cuDNN's operators read it; on the CPU it says nothing.
    """
    if tensor.dtype != torch.float32:
        return "ieee"
    if switch in ("tf32", "ieee"):
        return switch
    if not tensor.is_cuda:
        return "ieee"
    precision = getattr(torch.backends.cudnn, switch).fp32_precision
    if precision == "none":
        precision = torch.backends.cudnn.fp32_precision
    return "tf32" if precision == "tf32" else "ieee"
