"""Lets a recording of a prepared call listen to what engines launch on its thread."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec


class Listener(Protocol):
    """What is told of launches. It is also the innermost dispatch mode of the thread."""

    def note_launch(self, engine: str, plan: LaunchPlan, parameters: ctypes.Structure) -> None:
        """Notes a launch."""

    def note_workspace(self, bytes_: int) -> None:
        """Notes memory that host code has allocated and that is neither input nor output."""

    def note_map(self, spec: TensorMapSpec, encoded: TensorMap) -> None:
        """Notes from which description a tensor map was encoded."""


class _Thread(threading.local):
    listener: Listener | None = None


_thread = _Thread()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells the listener of every launch of this thread until the block ends."""
    _thread.listener = listener
    try:
        yield
    finally:
        _thread.listener = None


def listener() -> Listener | None:
    """Returns what listens to this thread."""
    return _thread.listener
