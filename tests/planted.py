"""Faults planted into a copy of the kernels' sources, one at a time: each must be noticed, or a test that passes says nothing."""

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
    """A piece of source, what it becomes, and the emulator's mode in which that must show."""

    name: str
    source: str
    old: str
    new: str
    mode: str = field(default="race", kw_only=True)

    def kernels(self, op: str, rows: Iterable[Kernel]) -> cuda.KernelObject:
        """Rows of an op, compiled from sources that have the fault."""
        directory = BUILD / f"faults-{op}"
        folder = directory / self.name.replace(" ", "-").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCES / op, folder / op)
        path = folder / op / self.source
        text = path.read_text()
        assert not self.old or self.old in text, "the source has changed, and the fault with it"
        path.write_text(text.replace(self.old, self.new) if self.old else text)
        output = folder / "kernels.so"
        return cuda.KernelObject(
            build("emulated", list(rows), output, mode=self.mode, directory=directory / self.mode, include=[folder])
        )


def launch_from(kernels: cuda.KernelObject, plan: LaunchPlan, parameters: ctypes.Structure) -> None:
    """Launches a kernel of that object on the emulator."""
    kernel, config = kernels.prepare(plan)
    status = kernels.library.torch_unroll_launch(kernel, ctypes.byref(config), ctypes.byref(parameters), None)
    kernels.check(status, plan)
