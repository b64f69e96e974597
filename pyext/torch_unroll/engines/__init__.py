"""The engines, and the choice of the one that serves a call.

`engine=None` means the default: "auto", unless `use_engine` or TORCH_UNROLL_ENGINE names an engine. "auto" selects the first
engine that accepts the call, in the order of `NAMES`; calls for which the kernels are not made, such as those on CPU tensors, go
to torch's own operator (see `claims`). A named engine never falls back: a call that it refuses raises an error that gives the
reason. One function, `refusal`, decides whether an engine accepts a call, both for the selection and for explanations of it. An
engine is imported when a call first considers it.
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

#: The engines, the fastest first.
NAMES = ("cuda", "cupy", "numba", "torch")

#: The engine that `engine=None` means unless `_traced` names one. It is a plain global, since a ContextVar breaks `fullgraph` and
#: a thread-local goes stale under torch.compile.
default = "auto"


def check(name: str) -> str:
    """Returns the name; raises ValueError if it is neither an engine's nor "auto"."""
    if name not in (*NAMES, "auto"):
        raise ValueError(f"engine: expected one of {', '.join(NAMES)} or auto, got {name!r}")
    return name


default = check(os.environ.get("TORCH_UNROLL_ENGINE", "auto") or "auto")

#: The engine of the innermost `use_engine` block that torch.compile traced; None outside such blocks. It is kept apart from
#: `default` because a function compiled by torch.compile does not write the globals that it assigns until it ends. Writing
#: `default` then would undo what blocks of other threads have assigned meanwhile.
_traced: str | None = None


def _set_default(name: str) -> None:
    global default
    default = name


_setting = Setting(lambda: default, _set_default)


class use_engine:  # noqa: N801 (a context manager, named like torch.no_grad)
    """Makes an engine the default within a block, `with tu.use_engine("numba"): ...`, or within a function that it decorates.

    The choice is global to the process, so that it holds under `torch.compile` and on autograd's threads. Of several open blocks,
    the one entered last decides; they may end in any order.

    Raises:
        ValueError: the engine is unknown.
    """

    def __init__(self, name: str):
        self.name = check(name)
        self._outer: list[str | None] = []  # the value of `_traced` before each block that was traced

    def __enter__(self) -> None:
        global _traced
        if torch.compiler.is_dynamo_compiling():  # the lock of `_setting` cannot be traced; a stack serves instead
            self._outer.append(_traced)
            _traced = self.name
        else:
            _setting.enter(self, self.name)

    def __exit__(self, *_: object) -> None:
        global _traced
        if self._outer:  # the start of the block was traced, though after a graph break its end may not be
            _traced = self._outer.pop()
        else:
            _setting.leave(self)

    def __call__(self, function: Function) -> Function:
        name = self.name  # torch.compile cannot enter a context manager that was made outside of the traced code
        return cast(Function, context_decorator(lambda: use_engine(name), function))


def default_engine() -> str:
    """Returns the engine name, possibly "auto", that `engine=None` means now."""
    return default if _traced is None else _traced


def resolve(engine: str | None) -> str:
    """Returns the engine name, possibly "auto", that a public function with this `engine` argument passes to its operator.

    Raises:
        ValueError: the engine is unknown.
    """
    if engine is not None:
        return check(engine)
    return default_engine()


@overload
def load(name: Literal["torch"]) -> ReferenceEngine: ...
@overload
def load(name: str) -> Engine: ...
def load(name: str) -> Engine:
    """Returns an engine; raises ImportError if its packages are missing, and ValueError if the name is unknown."""
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
    """Returns why an engine does not accept a call and, if there is one, the remedy; None if it accepts the call."""
    try:
        return _predicate(name)(op, device, dtype)
    except ImportError as error:
        return str(error)


def _predicate(name: str) -> Callable[[str, torch.device, torch.dtype], str | None]:
    """Returns an engine's function `refuses`, which says why the engine does not accept a call."""
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
    """Returns the engine for a call: the named one, or for "auto" the first that accepts it.

    Raises:
        RuntimeError: the named engine or, with "auto", every engine refuses the call.
        ValueError: the engine is unknown.
    """
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
    """Returns whether the engines serve a call at all: True if an engine is named; with "auto", False if the call goes to
    torch's own operator.

    With "auto", the input has to be a CUDA tensor of one of `DTYPES`, and no tensor may be sparse, nested or quantized. `name`
    and `names` are the argument names of the input and of `others`; if there are fewer names than `others`, the last one names a
    list that holds the remaining tensors.

    Raises:
        RuntimeError: an engine is named, and a tensor is not strided (sparse, for example), or is nested or quantized.
    """
    if engine == "auto" and not (tensor.is_cuda and tensor.dtype in DTYPES):
        return False
    tensors = (tensor, *others)
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        tensors = tuple(None if other is None else unwrapped(other) for other in tensors)
    for other in tensors:
        if other is not None and (other.layout is not torch.strided or other.is_nested or other.is_quantized):
            break
    else:
        return True
    if engine == "auto":
        return False
    if len(names) < len(others):
        names = (*names[:-1], *(f"{names[-1]}[{i}]" for i in range(len(others) - len(names) + 1)))
    for argument, other in zip((name, *names), tensors, strict=True):
        if other is not None:
            require_strided(other, argument)
    return True


def resolve_precision(switch: str, tensor: torch.Tensor) -> str:
    """Returns how the products of a call are computed: "tf32" or "ieee", and always "ieee" in dtypes other than float32.

    `switch` is either the answer itself or names the switch of torch that decides, "conv" or "rnn"; torch's switch for matmul
    has no influence. torch's switch is read when the operator runs, as in cuDNN's operators, and is ignored on the CPU.
    """
    if tensor.dtype != torch.float32:
        return "ieee"
    if switch in ("tf32", "ieee"):
        return switch
    return switched_precision(switch) if tensor.is_cuda else "ieee"


def switched_precision(switch: str) -> str:
    """Returns what torch's switch "conv" or "rnn" says of float32 products on the GPU: "tf32" or "ieee"."""
    precision = getattr(torch.backends.cudnn, switch).fp32_precision
    if precision == "none":
        precision = torch.backends.cudnn.fp32_precision
    return "tf32" if precision == "tf32" else "ieee"
