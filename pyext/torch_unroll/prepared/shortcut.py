"""Shortcuts of public functions: from a call's arguments straight to its prepared call, and the same for its backward.

A shortcut skips the checks of a public function and of its operator, because a call with equal arguments and tensors of the same
kind has passed them. If a gradient is wanted, the call is one autograd Function (`derivative`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from torch_unroll import prepared
from torch_unroll.engines import default_engine
from torch_unroll.engines.compiled import recording
from torch_unroll.kernels import changes
from torch_unroll.plain import PLAIN, is_plain
from torch_unroll.prepared import torch_internals
from torch_unroll.prepared.derivative import Derivative, Operation
from torch_unroll.prepared.runner import MISS, guarding, returning
from torch_unroll.prepared.table import MOST_KEYS, Entry, Tensors

_MOST_KINDS = 8  # of tensors, for one shape of the first tensor and the same options

#: (*tensors, *options) -> the results, MISS, or None if the call is to be served as usual.
Attempt = Callable[..., Any]


def is_same(options: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether options are equal and have the same types: 1, 1.0 and True are equal, but not equally good sizes."""
    return all(
        type(option) is type(other) and (is_same(option, other) if type(option) is tuple else option == other)
        for option, other in zip(options, others, strict=True)
    )


def _write(
    entry: Entry,
    check: Callable[..., bool],
    tensors: Tensors,
    options: tuple[Any, ...],
    derivative: Derivative | None,
    results: int,
) -> Attempt:
    """Returns an attempt for tensors of this kind and these options, which returns the first `results` results."""
    present = [tensor is not None for tensor in tensors]
    source = guarding(present, check)
    names = [f"option{i}" for i in range(len(options))]
    identical = " and ".join(f"{name} is same_{name}" for name in names)
    source.lines += [f"if not ({identical}) and not is_same(({', '.join(names)},), options):", "    return MISS"]
    source.bound |= {"is_same": is_same, "options": options}
    source.bound |= {f"same_{name}": option for name, option in zip(names, options, strict=True)}
    if entry.still_holds is not None:
        source.lines += ["if not still_holds():", "    return MISS"]
        source.bound["still_holds"] = entry.still_holds
    if entry.prepared is None:
        source.lines.append("return None")
    elif derivative is not None:
        wanted = "" if len(derivative.outputs) == results else "[0]" if results == 1 else f"[:{results}]"
        source.lines.append(f"return apply({', '.join(source.parameters)}){wanted}")
        source.bound["apply"] = torch_internals.applier(derivative.function)
    else:
        launch = returning(entry.prepared, present, entry.prepared.results[:results], single=results == 1)
        source.lines += launch.lines
        source.bound |= launch.bound
    source.parameters += names
    return source.function()


class Shortcuts:
    """The shortcuts of a public function to one operator.

    Args:
        operation: the operator. The tensors of the function are those of the operator.
        results: how many of the operator's results the function returns, the first ones.
    """

    def __init__(self, operation: Operation, results: int = 1):
        self.operation, self.results = operation, results
        self._lock = threading.Lock()
        #: (which tensors an attempt has, whether they are of its kind, the attempt)
        self._known: dict[Any, tuple[tuple[list[bool], Callable[..., bool], Attempt], ...]] = {}
        self._changes = changes.count

    def take(self, tensors: Tensors, options: tuple[Any, ...]) -> Any:
        """Returns the result of a call by its shortcut, or a tuple of results; None if the call is to be served as usual."""
        first = tensors[0]
        if (
            type(first) not in PLAIN  # a subclass, or a mode, would see that the shape is read
            or torch._C._is_torch_function_mode_enabled()
            or forward_ad._current_level >= 0
            or torch._C._len_torch_dispatch_stack() > 0  # the guards do not see the modes of make_fx
            or recording.is_recording()
            or self._changes != changes.count
        ):
            return None
        try:
            known = self._known[_key(tensors, options)]
        except (KeyError, TypeError, RuntimeError):  # an unknown call, an unhashable option, or a nested tensor
            return None
        for _, _, attempt in known:
            results = attempt(*tensors, *options)
            if results is not MISS:
                return results
        return None

    def learn(self, tensors: Tensors, options: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
        """Adds the shortcut of a call that has just been served, if it is prepared or cannot be.

        Args:
            tensors, options: the arguments of the public function.
            numbers: the arguments that it passed to the operator after the tensors.
        """
        if not prepared.sights or recording.is_recording() or forward_ad._current_level >= 0 or not is_plain(tensors):
            return
        if not all(_is_immutable(option) for option in options):
            return
        with torch.no_grad():
            entry = self.operation.table.known(tensors, numbers)
        if entry is None or (entry.run is None and entry.obstacle is None):
            return
        key, present = _key(tensors, options), [tensor for tensor in tensors if tensor is not None]
        which = [tensor is not None for tensor in tensors]
        known = self._known.get(key, ()) if self._changes == changes.count else ()
        if any(which == others and check(*present) for others, check, _ in known):
            return  # its shortcut leads to where it has just been served
        check = torch_internals.guard(present)
        if check is None:
            return
        derivative = None
        if entry.prepared is not None and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
            derivative = Derivative(self.operation, entry.prepared, tensors, numbers)
        attempt = _write(entry, check, tensors, options, derivative, self.results)
        with self._lock:
            if self._changes != changes.count:
                self._known, self._changes = {}, changes.count
            if key not in self._known and len(self._known) >= MOST_KEYS:
                del self._known[next(iter(self._known))]
            self._known[key] = ((which, check, attempt), *self._known.get(key, ())[: _MOST_KINDS - 1])


def _key(tensors: Tensors, options: tuple[Any, ...]) -> Any:
    """What a call is looked up by: cheap facts, most of which the guards do not see."""
    return tensors[0].shape, len(tensors), options, torch.is_grad_enabled(), default_engine()  # type: ignore[union-attr]


def _is_immutable(option: Any) -> bool:
    """Whether an option is one of those that a shortcut may keep and compare."""
    if type(option) is tuple:
        return all(map(_is_immutable, option))
    return option is None or type(option) in (int, bool, float, str)
