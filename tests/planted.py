"""Builds kernels with one fault planted in a copy of their sources, for tests that must notice it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch_unroll.engines import cuda
from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.build import BUILD, build
from torch_unroll.kernels.table import Kernel, LaunchPlan


@dataclass(frozen=True)
class Fault:
    """A replacement of source text, and the mode of the emulator (see kernels/build.py) in which the tests must notice it."""

    name: str
    source: str
    old: str
    new: str
    mode: str = field(default="race", kw_only=True)

    def text(self, op: str) -> str:
        """Returns the text of the source with the fault."""
        text = (SOURCES / op / self.source).read_text()
        assert not self.old or self.old in text, f"{self.name}: the text to replace is not in {op}/{self.source}"
        return text.replace(self.old, self.new) if self.old else text

    def kernels(self, op: str, rows: Iterable[Kernel]) -> cuda.KernelObject:
        """Compiles rows of an op's kernel table from sources with the fault."""
        directory = BUILD / f"faults-{op}"
        folder = directory / self.name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCES / op, folder / op)
        (folder / op / self.source).write_text(self.text(op))
        output = folder / "kernels.so"
        return cuda.KernelObject(
            build("emulated", list(rows), output, mode=self.mode, directory=directory / self.mode, include=[folder])
        )


def launch_from(kernels: cuda.KernelObject, plan: LaunchPlan, parameters: ctypes.Structure) -> None:
    """Launches a kernel that `Fault.kernels` has compiled, on the emulator.

    Its stacks are not kept, since libraries stay loaded, and those of many would exceed the mappings that a process may have.
    """
    kernel, config = kernels.prepare(plan)
    status = kernels.library.torch_unroll_launch(kernel, ctypes.byref(config), ctypes.byref(parameters), None)
    kernels.library.torch_unroll_emulator_unmap_stacks()
    kernels.check(status, plan)
