"""The prepared calls of an operator."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_unroll import prepared
from torch_unroll.engines import switched_precision
from torch_unroll.engines.compiled.conv2d_workspace import workspace_limit
from torch_unroll.engines.compiled.listening import listener
from torch_unroll.engines.compiled.recording import is_recording, note_prepared
from torch_unroll.kernels import changes
from torch_unroll.prepared import runner, torch_internals
from torch_unroll.prepared.recorder import Obstacle, Recorder
from torch_unroll.prepared.sequence import Prepared, assemble

MOST_KEYS = 512  # of one operator
_MOST_KINDS = 8  # of tensors, for one shape of the first tensor and the same other arguments

Tensors = tuple[Tensor | None, ...]


class Entry:
    """A call that has been seen.

    Attributes:
        check: whether the present tensors of a call are of the same kind.
        still_holds: whether what the recording read besides the tensors is unchanged; None if it read nothing.
        run: launches the call again; None if it is not prepared.
        obstacle: why it is not prepared and will not be; None if it is, or may still be.
    """

    __slots__ = ("check", "is_single", "obstacle", "prepared", "run", "sights", "still_holds")

    def __init__(self, check: Callable[..., bool], still_holds: Callable[[], bool] | None):
        self.check, self.still_holds = check, still_holds
        self.sights = 0
        self.run: runner.Run | None = None
        self.prepared: Prepared | None = None
        self.obstacle: str | None = None
        self.is_single = True

    def is_due(self, tensors: Tensors) -> bool:
        """Counts a call; returns whether it is to be recorded."""
        if self.run is not None or self.obstacle is not None:
            return False
        self.sights += 1
        if self.sights < prepared.sights:
            return False
        return not (is_capturing(tensors) or torch._C._is_torch_function_mode_enabled())  # a mode would see the recording

    def learn(self, outcome: Prepared | Obstacle, tensors: Tensors, single: bool) -> None:
        """Takes the outcome of a recording."""
        if isinstance(outcome, Prepared):
            self.is_single, self.prepared = single, outcome
            self.run = runner.returning(outcome, [t is not None for t in tensors], outcome.results, single).function()
        elif outcome.lasting:
            self.obstacle = str(outcome)

    def describe(self) -> str:
        """Returns what `explain` says of the call."""
        if self.obstacle is not None:
            return f"not prepared, since {self.obstacle}"
        if self.run is None:
            return f"not prepared yet, seen {self.sights} of {prepared.sights} times"
        return "prepared"


def precision_guard(switch: str, tensor: Tensor) -> Callable[[], bool] | None:
    """Returns whether torch's switch for TF32 is still as it is now; None for a call that the switch does not concern.

    Args:
        switch: the argument `precision` of the call.
        tensor: its first tensor.
    """
    if switch in ("tf32", "ieee") or not tensor.is_cuda or tensor.dtype != torch.float32:
        return None
    precision = switched_precision(switch)
    return lambda: switched_precision(switch) == precision


def is_capturing(tensors: Tensors) -> bool:
    """Whether a CUDA graph captures a call of these tensors. Nothing is recorded then: what a graph captures must not depend on
    how often a call has been seen."""
    return any(tensor is not None and tensor.is_cuda for tensor in tensors) and torch.cuda.is_current_stream_capturing()


def record(function: Callable[[], Any], tensors: Tensors) -> tuple[Any, Prepared | Obstacle]:
    """Calls a function of tensors. Returns its results, and the recorded call or the obstacle to it."""
    recorder = Recorder(workspace_limit())
    results = recorder.run(function)
    listed = (results,) if isinstance(results, Tensor) else tuple(results)
    try:
        return results, assemble(recorder, [tensor for tensor in tensors if tensor is not None], listed)
    except Obstacle as error:
        return results, error


class Table:
    """The calls of an operator that have been seen, by their other arguments and the shape of their first tensor."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self._lock = threading.Lock()
        self._entries: dict[Any, tuple[Entry, ...]] = {}
        self._changes = changes.count  # for which the entries hold

    def known(self, tensors: Tensors, numbers: tuple[Any, ...]) -> Entry | None:
        """Returns the entry of a call, or None if there is none."""
        return self._find(_key(tensors, numbers), tensors)

    def entry(self, tensors: Tensors, numbers: tuple[Any, ...], still_holds: Callable[[], bool] | None) -> Entry | None:
        """Returns the entry of a call, a new one if there is none; None if torch cannot guard its tensors."""
        key = _key(tensors, numbers)
        if (entry := self._find(key, tensors)) is not None:
            return entry
        check = torch_internals.guard([tensor for tensor in tensors if tensor is not None])
        if check is None:
            return None
        entry = Entry(check, still_holds)
        with self._lock:
            if key not in self._entries and len(self._entries) >= MOST_KEYS:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = (entry, *self._entries.get(key, ())[: _MOST_KINDS - 1])
        return entry

    def _find(self, key: Any, tensors: Tensors) -> Entry | None:
        if self._changes != changes.count:
            self._entries, self._changes = {}, changes.count
        known = self._entries.get(key)
        if known is not None:
            present = [tensor for tensor in tensors if tensor is not None]
            for entry in known:
                if entry.check(*present) and (entry.still_holds is None or entry.still_holds()):
                    return entry
        return None


def _key(tensors: Tensors, numbers: tuple[Any, ...]) -> Any:
    first = tensors[0]
    assert first is not None
    shape = None if first.is_nested else first.shape
    return shape, numbers, tuple([tensor is None for tensor in tensors])


def serve(table: Table, compute: Callable[..., Any], tensors: Tensors, numbers: tuple[Any, ...], still_holds: Any) -> Any:
    """Computes a call of an operator: by its prepared call if there is one, as usual otherwise."""
    if listener() is not None:  # the call is part of one that is being recorded
        return compute(*tensors, *numbers)
    entry = table.entry(tensors, numbers, still_holds)
    if entry is None:
        return compute(*tensors, *numbers)
    if is_recording():
        note_prepared(table.operator, entry.describe())
    elif entry.run is not None:
        results = entry.run(*tensors)
        if results is not None:
            return results
    elif entry.is_due(tensors):
        results, outcome = record(lambda: compute(*tensors, *numbers), tensors)
        entry.learn(outcome, tensors, isinstance(results, Tensor))
        return results
    return compute(*tensors, *numbers)
