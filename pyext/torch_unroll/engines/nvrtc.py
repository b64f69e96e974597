"""Compiles rows of the kernel table at run time: NVRTC, the same sources, no nvcc, no include path and no GPU.

A kernel is its source and every file that includes, all held in memory: what is compiled is exactly what `Recipe.digest` names.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.table import Kernel, checked_source

#: No option changes the arithmetic, here or in kernels/build.py: engines `cuda` and `cupy` give the same bits. Not CuPy's own
#: -ftz=true above all, under which the largest of subnormal numbers would not be torch's. -lineinfo is for profilers.
OPTIONS = ("-std=c++20", "-lineinfo")

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)


class CompileError(RuntimeError):
    """A kernel that NVRTC does not take; the message is the compiler's whole log."""


@dataclass(frozen=True)
class Binary:
    """A compiled kernel."""

    symbol: str  # the kernel's name within the code
    code: bytes  # a cubin


@cache
def sources(name: str) -> dict[str, bytes]:
    """A file of kernels/cuda and every file it includes, directly or not, by the names they are included by."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in found and (SOURCES / each).is_file():  # others are the host's, which NVRTC skips
            found[each] = (SOURCES / each).read_bytes()
            waiting += [included.decode() for included in _INCLUDE.findall(found[each])]
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Recipe:
    """Everything that the code of a kernel depends on."""

    kernel: Kernel
    architecture: str  # "sm_80", "sm_90a", ...

    @cached_property
    def digest(self) -> str:
        """The identity of the result: the same sources, options, architecture and compiler give the same code."""
        total = hashlib.sha256()
        settings = (self.kernel.source, self.kernel.expression, self.architecture, *OPTIONS, *map(str, version()))
        files = (part for name, text in self._sources.items() for part in (name.encode(), text))
        for part in (*map(str.encode, settings), self._text, *files):
            total.update(len(part).to_bytes(8, "little") + part)
        return total.hexdigest()

    @property
    def _sources(self) -> dict[str, bytes]:
        return {**sources(self.kernel.source), **sources("platform/layout.h")}

    @property
    def _text(self) -> bytes:
        """What is compiled: it includes the sources, and states how parameters are laid out in Python."""
        return checked_source([self.kernel]).encode()

    def compile(self) -> Binary:
        """Runs NVRTC; other threads go on.

        Raises:
            CompileError: with the compiler's whole log, which names the files and lines of kernels/cuda.
        """
        nvrtc = _bindings()
        files = {name.encode(): content for name, content in self._sources.items()}
        expression = self.kernel.expression.encode()
        program = _check(nvrtc.nvrtcCreateProgram(self._text, b"kernel.cu", len(files), list(files.values()), list(files)))
        try:
            _check(nvrtc.nvrtcAddNameExpression(program, expression))
            options = [option.encode() for option in (f"-arch={self.architecture}", *OPTIONS)]
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            if status:
                log = bytearray(_check(nvrtc.nvrtcGetProgramLogSize(program)))
                _check(nvrtc.nvrtcGetProgramLog(program, log))
                raise CompileError(
                    f"{self.kernel.expression} does not compile for {self.architecture} "
                    f"(NVRTC {'.'.join(map(str, version()))}, {' '.join(OPTIONS)}; sources in {SOURCES}):\n"
                    + log.decode(errors="replace").strip("\0\n")
                )
            symbol = _check(nvrtc.nvrtcGetLoweredName(program, expression)).decode()
            code = bytearray(_check(nvrtc.nvrtcGetCUBINSize(program)))
            _check(nvrtc.nvrtcGetCUBIN(program, code))
            return Binary(symbol, bytes(code))
        finally:
            nvrtc.nvrtcDestroyProgram(program)


def _bindings() -> Any:
    from cuda.bindings import nvrtc

    return nvrtc


def _check(answer: tuple[Any, ...]) -> Any:
    status, *results = answer
    if status:
        text = _bindings().nvrtcGetErrorString(status)[1].decode()
        raise RuntimeError(f"NVRTC: {text}")
    return results[0] if len(results) == 1 else results


@cache
def version() -> tuple[int, int]:
    """NVRTC's, which is that of its CUDA toolkit."""
    major, minor = _check(_bindings().nvrtcVersion())
    return major, minor


@cache
def architectures() -> tuple[int, ...]:
    """What this NVRTC compiles for: 80, 90, ..."""
    return tuple(_check(_bindings().nvrtcGetSupportedArchs()))


def architecture_of(capability: tuple[int, int]) -> str:
    """What a GPU's kernels are compiled for: with Hopper's own instructions on Hopper."""
    number = f"{capability[0]}{capability[1]}"
    return f"sm_{number}a" if number == "90" else f"sm_{number}"


def runs_on(kernel: Kernel, architecture: str) -> bool:
    """Whether a row of the table is made for an architecture."""
    if kernel.architecture.endswith("a"):
        return architecture == f"sm_{kernel.architecture}"
    return int(kernel.architecture) <= int(re.sub(r"\D", "", architecture))
