"""Writes the Python functions that launch a prepared call on other tensors.

Their cost is the point of them, so their source is written for each prepared call: the numbers of its tensors are unrolled, and
every name that they need is bound to a local one.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_unroll.engines import cuda
from torch_unroll.kernels.interface import NOT_ALIGNED
from torch_unroll.prepared import torch_internals
from torch_unroll.prepared.sequence import Prepared

#: What a function returns for tensors that are not of its kind.
MISS = object()

#: (*tensors, None for absent ones) -> the results, or None if the tensors are less aligned than the recorded ones were.
Run = Callable[..., Any]


@dataclass
class Source:
    """The source of a function: its lines, and the values of the names that are bound to local ones."""

    parameters: list[str]
    lines: list[str]
    bound: dict[str, Any] = field(default_factory=dict)

    def function(self) -> Callable[..., Any]:
        """Returns the function."""
        names = ", ".join(f"{name}={name}" for name in self.bound)
        text = "\n    ".join([f"def run({', '.join(self.parameters)}, *, {names}):", *self.lines])
        namespace = dict(self.bound)
        exec(text, namespace)
        function: Callable[..., Any] = namespace["run"]
        return function


def guarding(present: Sequence[bool], check: Callable[..., bool]) -> Source:
    """Returns the first lines of a function: it returns MISS unless its tensors are those of a kind.

    Args:
        present: for each tensor argument, whether it is there; the others are None.
        check: whether the present tensors are of the kind.
    """
    names = [f"tensor{i}" for i in range(len(present))]
    there = [name for name, is_present in zip(names, present, strict=True) if is_present]
    tests = [f"{name} is not None" for name in names if name not in there] + [f"not check({', '.join(there)})"]
    return Source(names, [f"if {' or '.join(tests)}:", "    return MISS"], {"MISS": MISS, "check": check})


def returning(prepared: Prepared, present: Sequence[bool], results: Sequence[int | None], single: bool) -> Source:
    """Returns the source of a `Run`.

    Args:
        present: for each tensor argument, whether the recorded call had it.
        results: what the function returns: numbers of allocations, or None for None.
        single: whether it returns its only result itself rather than in a tuple.
    """
    source = launching(prepared, present, results)
    listed = ", ".join("None" if number is None else f"result{number}" for number in results)
    source.lines += ["if status:", "    return fail(status)", f"return {listed if single else f'({listed},)'}"]
    return source


def launching(prepared: Prepared, present: Sequence[bool], results: Sequence[int | None]) -> Source:
    """Returns the first lines of a function that launches a prepared call.

    They assign the allocations to `result0` and so on, and to `status` a value that is not 0 if nothing was launched; `fail`
    raises an exception for it or, if the tensors are less aligned than the recorded ones, returns None.

    Args:
        present: for each tensor argument, whether the recorded call had it.
        results: the allocations that the function needs; others are made only if kernels write them.
    """
    library = cuda.kernel_object_on(prepared.device).library
    names = [f"tensor{i}" for i in range(len(present))]
    pointers = [f"{name}.data_ptr()" for name, is_present in zip(names, present, strict=True) if is_present]
    bound: dict[str, Any] = {"allocate": torch_internals.allocator(prepared.device)}
    body = []
    for i, allocation in enumerate(prepared.allocations):
        if i not in prepared.written and i not in results:
            pointers.append("0")
            continue
        bound |= {f"size{i}": allocation.size, f"stride{i}": allocation.stride, f"dtype{i}": allocation.dtype}
        body.append(f"result{i} = allocate(size{i}, stride{i}, dtype{i})")
        pointers.append(f"result{i}.data_ptr()")
    if prepared.workspace_bytes:
        bound |= {"bytes_": (prepared.workspace_bytes,), "dense": (1,), "byte": torch.uint8}
        body.append("workspace = allocate(bytes_, dense, byte)")
        pointers.append("workspace.data_ptr()")
    on_gpu = prepared.device.type == "cuda"
    body.append(f"status = launch(sequence, pack({', '.join(pointers)}), {'stream(index)' if on_gpu else 'None'})")
    if on_gpu:
        bound |= {
            "index": prepared.device.index,
            "stream": torch_internals.raw_stream,
            "exchange": torch_internals.exchange_device,
        }
        body = ["previous = exchange(index)", "try:", *(f"    {line}" for line in body), "finally:", "    exchange(previous)"]

    def fail(status: int) -> None:
        if status != NOT_ALIGNED:
            raise RuntimeError(library.torch_unroll_error_text(status).decode())

    bound |= {
        "launch": library.torch_unroll_launch_sequence,
        "sequence": ctypes.addressof(prepared.struct),
        "pack": struct.Struct(f"{len(pointers)}Q").pack,
        "fail": fail,
        "prepared": prepared,  # owns the memory to which the sequence points
    }
    return Source(names, body, bound)
