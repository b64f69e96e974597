"""`python -m torch_unroll compile`: fills the disk cache of engine `cupy` ahead of time, without a GPU."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import torch

from torch_unroll.engines import nvrtc, nvrtc_cache
from torch_unroll.kernels.dtypes import DTYPES
from torch_unroll.kernels.table import OPS, Kernel, kernels_of


def rows(op: str | None, dtype: str | None, architecture: str) -> list[Kernel]:
    """The kernels that calls of an op in a dtype may launch on an architecture; None stands for all ops or dtypes."""
    selected: dict[Kernel, None] = {}
    for op_name in OPS if op is None else (op,):
        for dtype_name in DTYPES if dtype is None else (dtype,):
            selected.update(dict.fromkeys(row for row in kernels_of(op_name, dtype_name) if nvrtc.runs_on(row, architecture)))
    return list(selected)


def _architecture(name: str | None) -> str:
    """The architecture that the engine compiles for, given a name such as sm_90; by default that of the current GPU.

    Raises:
        ValueError: NVRTC does not know the architecture, or it is below sm_80.
    """
    if name is None:
        return nvrtc.architecture_of(torch.cuda.get_device_capability())
    known = [number for number in nvrtc.architectures() if number >= 80]
    match = re.fullmatch(r"sm_(\d+)a?", name)
    if not match or int(match[1]) not in known:
        raise ValueError(f"--architecture: expected one of {', '.join(f'sm_{number}' for number in known)}, got {name!r}")
    return nvrtc.architecture_of(divmod(int(match[1]), 10))


def _prepare(recipe: nvrtc.Recipe) -> bool:
    """Compiles a kernel unless the cache has it; returns whether it was compiled."""
    if nvrtc_cache.load(recipe) is not None:
        return False
    nvrtc_cache.store(recipe, recipe.compile())
    return True


def _bar(done: int, total: int, what: str) -> None:
    """Draws the progress if stderr is a terminal."""
    if sys.stderr.isatty():
        filled = 30 * done // total
        print(f"\r[{'#' * filled}{' ' * (30 - filled)}] {done}/{total} {what[:60]:60}", end="", file=sys.stderr, flush=True)


def fill(kernels: Sequence[Kernel], architecture: str, jobs: int) -> int:
    """Compiles the kernels that the cache lacks, `jobs` at a time; returns their number.

    Raises:
        nvrtc.CompileError: a kernel does not compile.
        OSError, RuntimeError: the cache cannot be used.
    """
    compiled = 0
    with ThreadPoolExecutor(jobs) as pool:
        running: dict[Future[bool], Kernel] = {pool.submit(_prepare, nvrtc.Recipe(row, architecture)): row for row in kernels}
        try:
            for done, future in enumerate(as_completed(running), 1):
                compiled += future.result()
                _bar(done, len(running), running[future].expression)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            if sys.stderr.isatty():
                print(file=sys.stderr)
    return compiled


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m torch_unroll compile",
        description="Compiles the CUDA kernels with NVRTC into the disk cache of engine `cupy`, so that no call waits for the "
        "compiler. Needs no GPU, no driver and no nvcc.",
        epilog="The cache is TORCH_UNROLL_CACHE_DIR, by default ~/.cache/torch_unroll; what is in it is not compiled again.",
    )
    parser.add_argument("--op", choices=OPS, help="only this op's kernels")
    parser.add_argument("--dtype", choices=DTYPES, help="only this dtype's")
    parser.add_argument("--architecture", help="such as sm_80 or sm_90a; by default that of the GPU")
    parser.add_argument("-j", "--jobs", type=int, default=int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    if options.architecture is None and not torch.cuda.is_available():
        parser.error("there is no GPU to compile for: name one's architecture, such as --architecture sm_90a")
    start = time.perf_counter()
    try:
        architecture = _architecture(options.architecture)
        kernels = rows(options.op, options.dtype, architecture)
        compiled = fill(kernels, architecture, options.jobs)
        seconds = time.perf_counter() - start
        print(f"{len(kernels)} kernels for {architecture} in {nvrtc_cache.folder()}: {compiled} compiled now, in {seconds:.1f} s")
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"torch_unroll compile: {error}", file=sys.stderr)
        return 1
    return 0
