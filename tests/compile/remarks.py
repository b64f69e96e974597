"""What ptxas says of each kernel with -v: registers, stack, spills, and its remarks."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
#: What ptxas and nvcc print when all is well.
_PLAIN = re.compile(r"ptxas info\s*: (?:Compiling entry|Function properties|Used \d+ registers|Compile time|\d+ bytes gmem)")


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one target."""

    symbol: str
    target: str
    stack_bytes: int
    spill_bytes: int  # stored and loaded
    registers: int

    @property
    def template(self) -> str:
        """The name of the kernel template, out of the mangled symbol: its length stands before it."""
        length, rest = re.match(r"_Z(?:N[^K]*?)?(\d+)(\w+)", self.symbol).groups()
        return rest[: int(length)]


def compiled(log: str) -> Iterable[Compiled]:
    """The kernels that a log reports."""
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", log):
        entry, stack, registers = _ENTRY.search(part), _STACK.search(part), _REGISTERS.search(part)
        if entry:
            assert stack is not None, f"no stack report for {entry[1]}"
            assert registers is not None, f"no register report for {entry[1]}"
            yield Compiled(entry[1], entry[2], int(stack[1]), int(stack[2]) + int(stack[3]), int(registers[1]))


def remarks(log: str) -> list[str]:
    """Every line that is not part of the report on a kernel: warnings, and remarks such as C7510 (serialised wgmma)."""
    return [line for line in log.splitlines() if line.strip() and not _PLAIN.match(line) and not _STACK.search(line)]


def demangled(symbols: Iterable[str]) -> list[str]:
    """C++ names, where binutils' c++filt is at hand."""
    symbols = list(symbols)
    if not symbols or not shutil.which("c++filt"):
        return symbols
    filtered = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return filtered.stdout.splitlines()
