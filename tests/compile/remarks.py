"""Reads the output of `ptxas -v`: registers, stack and spills of each kernel, and remarks."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
#: Lines of ordinary output, which are not remarks.
_PLAIN = re.compile(r"ptxas info\s*: (?:Compiling entry|Function properties|Used \d+ registers|Compile time|\d+ bytes gmem)")


@dataclass(frozen=True)
class Compiled:
    """The report on one kernel for one target."""

    symbol: str
    target: str
    stack_bytes: int
    spill_bytes: int  # stores and loads
    registers: int

    @property
    def template(self) -> str:
        """The name of the kernel template, which the mangled symbol holds after the length of the name."""
        length, rest = re.match(r"_Z(?:N[^K]*?)?(\d+)(\w+)", self.symbol).groups()
        return rest[: int(length)]


def compiled(log: str) -> Iterable[Compiled]:
    """Yields the reports in a log."""
    for part in re.split(r"(?=ptxas info\s*: Compiling entry function)", log):
        entry, stack, registers = _ENTRY.search(part), _STACK.search(part), _REGISTERS.search(part)
        if entry:
            assert stack is not None, f"no stack report for {entry[1]}"
            assert registers is not None, f"no register report for {entry[1]}"
            yield Compiled(entry[1], entry[2], int(stack[1]), int(stack[2]) + int(stack[3]), int(registers[1]))


def remarks(log: str) -> list[str]:
    """The lines of a log that are not part of a report: warnings, and remarks such as C7510 (serialised wgmma)."""
    return [line for line in log.splitlines() if line.strip() and not _PLAIN.match(line) and not _STACK.search(line)]


def demangled(symbols: Iterable[str]) -> list[str]:
    """The C++ names of symbols, if binutils' c++filt is installed; otherwise the symbols."""
    symbols = list(symbols)
    if not symbols or not shutil.which("c++filt"):
        return symbols
    filtered = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return filtered.stdout.splitlines()
