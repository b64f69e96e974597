"""Runs pytest in Numba's simulator, with two of its habits mended: `python tests/numba/simulator.py ARGUMENTS OF PYTEST`.

A simulated thread is a thread of Python. Barriers wait for all of them to have had their turn, so turns are short; and the first
threads to ask for a shared array must get the same one, which the simulator's look-up, then insertion, does not promise.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # read when numba is imported, for good

import pytest
from numba.cuda.simulator.kernelapi import FakeCUDAShared


class _Allocations(dict):
    """A block's shared arrays: whoever asks first for one makes it, the others wait for it."""

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
