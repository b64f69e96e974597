"""Runs pytest in Numba's simulator, with two corrections of the simulator: `python tests/numba/simulator.py ARGUMENTS OF PYTEST`.

A simulated thread is a thread of Python. At a barrier, every thread waits until all others have been scheduled, so the switch
interval is set to a short time. All threads that ask for a shared array must get the same one, but the simulator looks it up and
then inserts it without a lock, so two threads could each insert their own; `_Allocations` prevents this.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # numba reads it once, when it is imported

import pytest
from numba.cuda.simulator.kernelapi import FakeCUDAShared


class _Allocations(dict):
    """A block's shared arrays: the first thread that asks for one creates it, and the others wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.changed, self.begun = threading.Condition(), set[Any]()

    def get(self, key: Any, default: Any = None) -> Any:
        with self.changed:
            if key not in self.begun:
                self.begun.add(key)
                return default
            self.changed.wait_for(lambda: key in self)
            return self[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        with self.changed:
            super().__setitem__(key, value)
            self.changed.notify_all()


def _begin(self: Any, dynshared_size: int, begin: Any = FakeCUDAShared.__init__) -> None:
    begin(self, dynshared_size)
    self._allocations = _Allocations()


if __name__ == "__main__":
    FakeCUDAShared.__init__ = _begin
    sys.setswitchinterval(1e-5)
    sys.exit(pytest.main(sys.argv[1:]))
