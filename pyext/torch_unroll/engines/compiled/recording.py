"""Notes what engines `cuda` and `cupy` launch, for `explain` and for the tests that assert which variant ran."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from torch_unroll.engines.compiled.listening import listener
from torch_unroll.kernels.planning import Selected
from torch_unroll.kernels.table import LaunchPlan

#: What serves a call in place of an engine.
TORCHS_OWN = "torch's own operator"


@dataclass(eq=False)
class Recording:
    """What engines `cuda` and `cupy` launched while a `recording` block was open."""

    launches: list[tuple[str, LaunchPlan]] = field(default_factory=list)  # (engine, plan), in order
    #: The most bytes that were allocated at once besides inputs and outputs.
    workspace_bytes: int = 0
    #: Kernel function, such as "conv2d_dgrad" -> what was selected for its last call.
    selections: dict[str, Selected[Any]] = field(default_factory=dict)
    #: For the first call with engine "auto" that was too large for the compiled kernels: the reason, and what served it instead.
    too_large: tuple[str, str] | None = None
    #: Operator -> whether its last call is prepared, and why not if it is not.
    preparation: dict[str, str] = field(default_factory=dict)
    _live_bytes: int = 0

    def _release(self, bytes_: int) -> None:
        self._live_bytes -= bytes_


_recordings: list[Recording] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Records what engines `cuda` and `cupy` launch, in any thread, until the block ends."""
    record = Recording()
    _recordings.append(record)
    try:
        yield record
    finally:
        _recordings.remove(record)


def is_recording() -> bool:
    """Whether a `recording` block is open. Prepared calls are then served as usual, since they note nothing."""
    return bool(_recordings)


def note_prepared(operator: str, state: str) -> None:
    """Notes whether a call of an operator is prepared."""
    for record in _recordings:
        record.preparation[operator] = state


def note_launch(engine: str, plan: LaunchPlan) -> None:
    """Notes a launch."""
    for record in _recordings:
        record.launches.append((engine, plan))


def note_workspace(workspace: Tensor) -> None:
    """Notes memory that host code has allocated and that is neither input nor output; it counts until the tensor is freed."""
    if (active := listener()) is not None:
        active.note_workspace(workspace.nbytes)
    for record in _recordings:
        record._live_bytes += workspace.nbytes
        record.workspace_bytes = max(record.workspace_bytes, record._live_bytes)
        weakref.finalize(workspace, record._release, workspace.nbytes)


def note_selection(selected: Selected[Any]) -> None:
    """Notes which variant and configuration compute a call, and why others do not."""
    for record in _recordings:
        record.selections[selected.function] = selected


def note_too_large(reason: str, served_by: str) -> None:
    """Notes that a call with engine "auto" is too large for the compiled kernels, and what serves it instead."""
    for record in _recordings:
        record.too_large = record.too_large or (reason, served_by)
