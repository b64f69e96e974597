"""Process-wide values that `with` blocks change while they are open."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(eq=False)
class _Entry(Generic[Value]):
    """A value that an owner has set: for one of its blocks, entered on `thread`, or permanently if `thread` is None."""

    value: Value
    owner: weakref.ref[Any]
    thread: int | None

    def is_settled(self) -> bool:
        """Whether the value is permanent and its owner can no longer enter a block."""
        return self.thread is None and self.owner() is None


class Setting(Generic[Value]):
    """A value for all threads, which is set permanently or by blocks: of the permanent settings and the open blocks, the one that
    was set or entered last determines the value.

    An owner is the object on whose behalf a value is set, such as a `conv2d_workspace`; it may have several blocks open.
    Blocks need not end in the reverse of the order in which they were entered (blocks of two threads, or of generators, do not):
    each one undoes only its own setting, and once all have ended the value is the one that was last set permanently.

    Args:
        read, write: functions that read and write the value. Other code may also write it; outside all blocks, that sets it
            permanently.
    """

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], object]):
        self._read, self._write = read, write
        # Re-entrant, since garbage collection may close a generator while the lock is held, which ends the generator's block.
        self._lock = threading.RLock()
        self._entries: list[_Entry[Value]] = []
        self._base = self._written = read()

    def set(self, owner: object, value: Value) -> None:
        """Sets the value permanently; once the owner has entered a block, the value applies only within its blocks."""
        with self._lock:
            self._adopt_outside_value()
            for entry, later in zip(self._entries[:-1], self._entries[1:], strict=True):
                if entry.is_settled() and later.is_settled():
                    self._entries.remove(entry)
            self._append(owner, value, None)

    def unset(self, owner: object) -> None:
        """Undoes the permanent settings of the owner."""
        with self._lock:
            self._adopt_outside_value()
            for entry in [entry for entry in self._entries if entry.thread is None and entry.owner() is owner]:
                self._entries.remove(entry)
            self._apply()

    def enter(self, owner: object, value: Value) -> None:
        """Begins a block of the owner, and undoes its permanent settings."""
        with self._lock:
            self.unset(owner)
            self._append(owner, value, threading.get_ident())

    def leave(self, owner: object) -> None:
        """Ends the block that the owner entered last on this thread or, if it has none here, on any thread. Raises RuntimeError
        if it has none at all."""
        with self._lock:
            blocks = [entry for entry in self._entries if entry.thread is not None and entry.owner() is owner]
            if not blocks:
                raise RuntimeError(f"{type(owner).__name__}: expected a block to be entered before it is left")
            here = [entry for entry in blocks if entry.thread == threading.get_ident()]
            self._entries.remove((here or blocks)[-1])
            self._apply()

    def _append(self, owner: object, value: Value, thread: int | None) -> None:
        self._entries.append(_Entry(value, weakref.ref(owner), thread))
        self._apply()

    def _apply(self) -> None:
        self._written = self._entries[-1].value if self._entries else self._base
        self._write(self._written)

    def _adopt_outside_value(self) -> None:
        """A value that other code has written replaces all permanent settings."""
        value = self._read()
        if not self._entries or value != self._written:
            self._base = value
            self._entries = [entry for entry in self._entries if entry.thread is not None]
