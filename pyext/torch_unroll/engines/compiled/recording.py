"""What a call launches, noted while it runs: `explain` and the tests that assert a variant read it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from torch_unroll.kernels.cuda.conv2d.choice import Chosen
from torch_unroll.kernels.table import LaunchPlan


@dataclass(eq=False)
class Recording:
    """The launches of a stretch of code, in order; the most bytes of workspace there were at once beside inputs and outputs; what
    was chosen by a table or a model, and what was passed over."""

    launches: list[tuple[str, LaunchPlan]] = field(default_factory=list)  # engine, plan
    workspace_bytes: int = 0
    passed_over: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # function -> (variant, reason)
    choices: dict[str, Chosen] = field(default_factory=dict)  # function -> the choice of its last call
    too_large: tuple[str, str] | None = None  # why the compiled kernels did not serve a call, and what did
    _live_bytes: int = 0

    def _release(self, bytes_: int) -> None:
        self._live_bytes -= bytes_


_open: list[Recording] = []


@contextmanager
def recording() -> Iterator[Recording]:
    """Notes every launch made within, by any thread."""
    record = Recording()
    _open.append(record)
    try:
        yield record
    finally:
        _open.remove(record)


def note_launch(engine: str, plan: LaunchPlan) -> None:
    """Called for each launch."""
    for record in _open:
        record.launches.append((engine, plan))


def note_workspace(workspace: Tensor) -> None:
    """Called where host code has allocated what is neither input nor output; counts until the tensor is gone."""
    for record in _open:
        record._live_bytes += workspace.nbytes
        record.workspace_bytes = max(record.workspace_bytes, record._live_bytes)
        weakref.finalize(workspace, record._release, workspace.nbytes)


def note_choice(function: str, passed_over: tuple[tuple[str, str], ...], chosen: Chosen | None = None) -> None:
    """Called where a variant is chosen, with those tried before it and why each was refused, and with the choice where more than
    a variant is chosen."""
    for record in _open:
        if passed_over:
            record.passed_over[function] = passed_over
        if chosen is not None:
            record.choices[function] = chosen


def note_too_large(reason: str, served_by: str) -> None:
    """Called where a call of engine "auto" goes elsewhere for its size."""
    for record in _open:
        record.too_large = record.too_large or (reason, served_by)
