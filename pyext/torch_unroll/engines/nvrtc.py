"""Compiles rows of the kernel table at run time: NVRTC compiles the same sources as nvcc, without an include path or a GPU.

The source of a kernel and the files of kernels/cuda that it includes are handed over in memory, so that `Recipe.digest` covers
exactly what is compiled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch_unroll.kernels import SOURCES
from torch_unroll.kernels.table import Kernel, checked_source

#: Neither these options nor those in kernels/build.py change the arithmetic, so engines `cuda` and `cupy` do not differ in it.
#: In particular, CuPy's -ftz=true is left out: it flushes subnormal results to zero, which torch does not. -lineinfo is for
#: profilers.
OPTIONS = ("-std=c++20", "-lineinfo")

_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)


class CompileError(RuntimeError):
    """NVRTC fails to compile a kernel; the message holds the compiler's whole log."""


@dataclass(frozen=True)
class Binary:
    """A compiled kernel."""

    symbol: str  # the kernel's name within the code
    code: bytes  # a cubin


@cache
def sources(name: str) -> dict[str, bytes]:
    """Returns a file of kernels/cuda and every file there that it includes, directly or not, as {name in `#include`: content}."""
    contents: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        included = waiting.pop()
        if included not in contents and (SOURCES / included).is_file():  # other headers are for the host; NVRTC skips them
            contents[included] = (SOURCES / included).read_bytes()
            waiting += [match.decode() for match in _INCLUDE.findall(contents[included])]
    return dict(sorted(contents.items()))


@dataclass(frozen=True)
class Recipe:
    """A kernel, and the architecture to compile it for."""

    kernel: Kernel
    architecture: str  # "sm_80", "sm_90a", ...

    @cached_property
    def digest(self) -> str:
        """A hash of what the compiled code depends on: sources, kernel, architecture, options and NVRTC's version."""
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
        """The translation unit: it includes the sources, and asserts that parameters are laid out as in Python."""
        return checked_source([self.kernel]).encode()

    def compile(self) -> Binary:
        """Runs NVRTC, without holding the interpreter lock.

        Raises:
            CompileError: the kernel does not compile; the log names the files and lines of kernels/cuda.
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
    """Returns the results of a call of the bindings: the result itself if there is one, else a list of them. Raises RuntimeError
    for a status that is not success."""
    status, *results = answer
    if status:
        text = _bindings().nvrtcGetErrorString(status)[1].decode()
        raise RuntimeError(f"NVRTC: {text}")
    return results[0] if len(results) == 1 else results


@cache
def version() -> tuple[int, int]:
    """Returns NVRTC's version, which is that of its CUDA toolkit."""
    major, minor = _check(_bindings().nvrtcVersion())
    return major, minor


@cache
def architectures() -> tuple[int, ...]:
    """Returns the compute capabilities that this NVRTC compiles for, as numbers: 80, 90, ..."""
    return tuple(_check(_bindings().nvrtcGetSupportedArchs()))


def architecture_of(capability: tuple[int, int]) -> str:
    """Returns the architecture for which kernels are compiled on a GPU; for Hopper it is sm_90a, which includes `wgmma`."""
    number = f"{capability[0]}{capability[1]}"
    return f"sm_{number}a" if number == "90" else f"sm_{number}"


def runs_on(kernel: Kernel, architecture: str) -> bool:
    """Returns whether a row of the table can run on an architecture."""
    if kernel.architecture.endswith("a"):
        return architecture == f"sm_{kernel.architecture}"
    return int(kernel.architecture) <= int(re.sub(r"\D", "", architecture))
