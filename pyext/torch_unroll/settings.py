"""Values of the process that `with` blocks change for as long as they are open."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(eq=False)
class _Entry(Generic[Value]):
    """What an owner sets: on a thread, for as long as a block of its is open there; or, on none, for good."""

    value: Value
    owner: weakref.ref[Any]
    thread: int | None

    def is_settled(self) -> bool:
        """Whether it is for good and can no longer become a block's."""
        return self.thread is None and self.owner() is None


class Setting(Generic[Value]):
    """A value that holds for every thread, and the blocks that set it: of those open, the one entered last holds.

    Blocks need not end in the order in which they were entered (those of two threads, and of generators, do not): each takes back
    what it set and nothing else, and when all have ended the value is as before. An owner may have any number of blocks open.

    Args:
        read, write: of the value, which others may write as well: they set it for good.
    """

    def __init__(self, read: Callable[[], Value], write: Callable[[Value], object]):
        self._read, self._write = read, write
        self._lock = threading.RLock()  # a generator that the garbage collector closes here leaves a block
        self._entries: list[_Entry[Value]] = []
        self._base = self._written = read()

    def set(self, owner: object, value: Value) -> None:
        """Sets the value for good, unless the owner enters a block later: then for that block only."""
        with self._lock:
            self._heed_others()
            for entry, later in zip(self._entries[:-1], self._entries[1:], strict=True):
                if entry.is_settled() and later.is_settled():
                    self._entries.remove(entry)
            self._append(owner, value, None)

    def unset(self, owner: object) -> None:
        """Takes back what the owner set for good."""
        with self._lock:
            self._heed_others()
            for entry in [entry for entry in self._entries if entry.thread is None and entry.owner() is owner]:
                self._entries.remove(entry)
            self._apply()

    def enter(self, owner: object, value: Value) -> None:
        """Begins a block."""
        with self._lock:
            self.unset(owner)
            self._append(owner, value, threading.get_ident())

    def leave(self, owner: object) -> None:
        """Ends a block of the owner's: the one that it entered last, on this thread if it has one here."""
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

    def _heed_others(self) -> None:
        """A value that was not written here replaces all that was set for good."""
        value = self._read()
        if not self._entries or value != self._written:
            self._base = value
            self._entries = [entry for entry in self._entries if entry.thread is not None]
