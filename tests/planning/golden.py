"""Digests of the launches of 5,000 random calls of each op, each planned for one of five GPUs: kernels, grids and parameters.

Host code runs on meta tensors, with a launcher that only records. A digest covers the numbers and types among the template
arguments of a kernel but not the kernel's name, so it changes with a plan and does not change when a kernel is renamed.

    python -m tests.planning.golden              compares with the stored digests, and prints the groups of calls that differ
    python -m tests.planning.golden --show OP N  prints what call N of an op launches; run it on two commits to see a difference
    python -m tests.planning.golden --write      stores the digests of the current launches
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

import torch_unroll as tu
from tests.gpus import A100, B200, H100, H200, L40S
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.interface import DTYPES, Conv2dGeometry, Pool2dGeometry, RnnOptions
from torch_unroll.kernels import planning
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import Kernel, LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec

CALLS = 5000
#: How many calls share a digest.
GROUP = 20
FILE = Path(__file__).with_name("golden.txt")

META = torch.device("meta")
GPUS = (A100, L40S, H200, H100, B200)


class Notes:
    """A launcher that launches nothing, and records each launch and each tensor map as a line of text."""

    def __init__(self, gpu: Device):
        self.gpu = replace(gpu, resident=self._resident)
        self.lines, self.variants = list[str](), list[str]()

    def properties(self, device: torch.device) -> Device:
        return self.gpu

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        config = plan.config
        numbers = " ".join(re.findall(r"\b(?:\d+|half|bfloat16|tfloat32|float|double|u?int\d+_t)\b", plan.kernel.expression))
        cut = (config.grid, config.block, config.cluster, config.shared_bytes, config.cooperative)
        self.lines.append(f"{numbers} {cut} {hashlib.sha256(_content(parameters)).hexdigest()[:8]}")
        self.variants.append(plan.variant)

    def _resident(self, plan: LaunchPlan) -> int:
        """Returns how many blocks the GPU holds at once, by its shared memory and 2,048 threads per multiprocessor.

        For a plan with clusters, returns how many clusters seven eighths of these blocks make.
        """
        x, y, z = plan.config.block
        blocks = min(2048 // (x * y * z), (self.gpu.shared_bytes_per_block + 1024) // (plan.config.shared_bytes + 1024))
        size = plan.config.cluster[0]
        return blocks * self.gpu.multiprocessors if size == 1 else blocks * self.gpu.multiprocessors * 7 // 8 // size

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        self.lines.append(f"map {tuple(spec)}")
        return TensorMap()

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        raise AssertionError("nothing is preloaded")


def _content(parameters: ctypes.Structure) -> bytes:
    """The bytes of a struct, with 1 in place of the address of a table on the host, which varies from run to run.

    The addresses of tensors without memory are small, and are kept.
    """
    for name, kind, *_ in parameters._fields_:
        if kind is ctypes.c_void_p and (getattr(parameters, name) or 0) >= 2**40:
            setattr(parameters, name, 1)
    return bytes(parameters)


def _engine(launcher: Notes) -> CompiledEngine:
    return CompiledEngine("golden", launcher)


def _laid_out(random: Random, size: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    """A tensor without memory: dense in a layout or, now and then, a part of a larger tensor and perhaps unaligned."""
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    if random.random() < 0.1:
        larger = (size[0], size[1] + random.choice((1, 8)), size[2] + random.choice((0, 1)), size[3] + random.choice((0, 3)))
        whole = torch.empty(larger, dtype=dtype, device=META).contiguous(memory_format=memory_format)
        return whole[:, random.choice((0, 1)) :][:, : size[1], : size[2], : size[3]]
    return torch.empty(size, dtype=dtype, device=META).contiguous(memory_format=memory_format)


def _conv2d(random: Random, engine: CompiledEngine) -> None:
    dtype, precision = random.choice(DTYPES), random.choice(("ieee", "tf32"))
    groups = random.choice((1, 1, 1, 1, 1, 2, 3, 8))
    C, K = (groups * random.choice((1, 3, 4, 8, 16, 30, 32, 64, 96, 128, 256, 512)) for _ in range(2))
    R, S = random.choice(((1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (1, 7), (3, 1), (11, 11), (2, 4)))
    stride = random.choice(((1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (3, 3), (4, 4), (6, 5)))
    dilation = random.choice(((1, 1), (1, 1), (1, 1), (2, 2), (1, 3), (40, 70)))
    top, left = random.randrange(R), random.randrange(S)
    padding = (top, random.choice((top, 0)), left, random.choice((left, 1)))
    least = [(taps - 1) * step + 1 for taps, step in zip((R, S), dilation, strict=True)]
    H, W = (extent + random.choice((0, 1, 4, 6, 13, 27, 55, 111, 223)) for extent in least)
    N = random.choice((1, 2, 3, 8, 32, 64, 256, 1024))
    P, Q = (
        (extent + before + after - reach) // step + 1
        for extent, before, after, reach, step in zip((H, W), padding[::2], padding[1::2], least, stride, strict=True)
    )
    layouts = [random.choice(("nchw", "nhwc"))] * 3
    if random.random() < 0.2:
        layouts = [random.choice(("nchw", "nhwc")) for _ in range(3)]
    sizes = ((N, C, H, W), (K, C // groups, R, S), (N, K, P, Q))
    x, w, y = (_laid_out(random, size, dtype, layout) for size, layout in zip(sizes, layouts, strict=True))
    geometry = (Conv2dGeometry(stride, padding, dilation, groups), precision)
    direction = random.choice(("fprop", "dgrad", "wgrad", "unfold", "fold")) if random.random() < 0.1 else None
    direction = direction or random.choice(("fprop", "dgrad", "wgrad"))
    if direction == "fprop":
        bias, bias2 = (random.choice((None, torch.empty(K, dtype=dtype, device=META))) for _ in range(2))
        engine.conv2d_fprop(x, w, bias, *geometry, bias2=bias2)
    elif direction == "dgrad":
        engine.conv2d_dgrad(y, w, (H, W), *geometry)
    elif direction == "wgrad":
        wgrad = random.choice((engine.conv2d_wgrad, engine.conv2d_wgrad_bias))
        wgrad(y, x, (R, S), *geometry)
    else:
        window = Pool2dGeometry((R, S), stride, (top, left), dilation)
        P, Q = (
            (extent + 2 * pad - reach) // step + 1
            for extent, pad, reach, step in zip((H, W), (top, left), least, stride, strict=True)
        )
        if direction == "unfold":
            engine.unfold(x, window)
        else:
            engine.fold(torch.empty((N, C * R * S, P * Q), dtype=dtype, device=META), (H, W), window)


def _max_pool2d(random: Random, engine: CompiledEngine) -> None:
    dtype, layout = random.choice(DTYPES), random.choice(("nchw", "nhwc"))
    if random.random() < 0.2:
        return _max_over_time(random, engine, dtype)
    R, S = random.choice(((2, 2), (3, 3), (3, 3), (3, 2), (5, 5), (7, 7), (13, 13), (20, 20), (56, 56), (200, 1), (190, 190)))
    stride = random.choice(((1, 1), (2, 2), (2, 2), (3, 3), (2, 1), (R, S)))
    dilation = random.choice(((1, 1), (1, 1), (1, 1), (2, 1)))
    padding = random.randrange(R // 2 + 1), random.randrange(S // 2 + 1)
    N, C = random.choice((1, 2, 3, 8, 64, 256)), random.choice((1, 3, 4, 8, 24, 64, 96, 480, 2048))
    H, W = (
        (taps - 1) * step + 1 + random.choice((0, 1, 4, 6, 13, 27, 55, 111, 223, 500))
        for taps, step in zip((R, S), dilation, strict=True)
    )
    x = _laid_out(random, (N, C, H, W), dtype, layout)
    window = Pool2dGeometry((R, S), stride, padding, dilation)
    y, offsets = engine.max_pool2d_forward(x, window, random.random() < 0.3, random.random() < 0.7)
    if not offsets.numel():
        return None
    call = random.choice(("backward", "backward", "gather", "indices"))
    if call == "backward":
        engine.max_pool2d_backward(y, offsets, (H, W), window)
    elif call == "gather":
        engine.max_pool2d_gather(x, offsets, window)
    else:
        engine.max_pool2d_indices(offsets, (H, W), window)
    return None


def _max_over_time(random: Random, engine: CompiledEngine, dtype: torch.dtype) -> None:
    T, N, C = random.choice((1, 3, 28, 300, 40000)), random.choice((1, 4, 64)), random.choice((1, 3, 64, 256, 1000))
    x = torch.empty((T, N, C), dtype=dtype, device=META)
    if random.random() < 0.2:
        x = torch.empty((N, T, C), dtype=dtype, device=META).transpose(0, 1)
    lengths = random.choice((None, torch.empty(N, dtype=torch.int64, device=META)))
    y, offsets = engine.max_over_time_forward(x, lengths, True)
    if random.random() < 0.5:
        engine.max_over_time_backward(y, offsets, T)
    else:
        engine.max_over_time_gather(x, offsets)


def _rnn(random: Random, engine: CompiledEngine) -> None:
    dtype, precision = random.choice(DTYPES), random.choice(("ieee", "tf32"))
    nonlinearity = random.choice(("tanh", "relu", "sigmoid", "identity"))
    N, H = (
        random.choice((1, 2, 3, 8, 20, 32, 64, 100, 256, 2048)),
        random.choice((1, 7, 16, 40, 64, 100, 128, 200, 256, 257, 300, 512, 650, 768, 1000, 1024, 1536, 2000, 2048, 4096)),
    )
    empty: Callable[..., Any] = lambda *size: torch.empty(size, dtype=dtype, device=META)  # noqa: E731
    if random.random() < 0.2:
        inputs = random.choice((1, 28, 64, 300, 1024))
        bias = random.choice((None, empty(H)))
        weights = empty(H, inputs), empty(H, H)
        h_next = engine.rnn_cell_forward(empty(N, inputs), empty(N, H), *weights, bias, bias, nonlinearity, precision)
        engine.rnn_cell_backward(h_next, h_next, *weights, nonlinearity, precision)
        return
    D, T = random.choice((1, 1, 2)), random.choice((1, 2, 5))
    batch_sizes = lengths = None
    z = empty(T, N, D * H)
    if random.random() < 0.2:
        batch_sizes = tuple(sorted((random.randint(1, N) for _ in range(T - 1)), reverse=True))
        batch_sizes = (N, *batch_sizes)
        z = empty(sum(batch_sizes), D * H)
    elif random.random() < 0.2:
        lengths = torch.empty(N, dtype=torch.int64, device=META)
    elif random.random() < 0.2:
        z = empty(N, T, D * H).transpose(0, 1)
    rest = (empty(D, H, H), empty(D, N, H), RnnOptions(lengths, batch_sizes, nonlinearity, precision))
    if random.random() < 0.5:
        engine.rnn_forward(z, *rest)
    else:
        engine.rnn_backward(z, z, *rest)


#: Op -> the variants that may be forced. A call draws a position in the tuple, so renaming a variant changes no draw.
VARIANTS = {"conv2d": ("wgmma", "mma", "simt", "im2col"), "rnn": ("single_block", "cluster", "grid_exchange", "step")}


@contextmanager
def _forced(op: str, random: Random) -> Iterator[None]:
    """Now and then forces one variant, and now and then limits the workspace of convolution to 1 MiB."""
    forced = random.choice(VARIANTS[op]) if op in VARIANTS and random.random() < 0.3 else None
    little = op == "conv2d" and random.random() < 0.05
    with planning.force(op, forced), tu.conv2d_workspace(1 << 20) if little else nullcontext():
        yield


OPS: dict[str, Callable[[Random, CompiledEngine], None]] = {"conv2d": _conv2d, "max_pool2d": _max_pool2d, "rnn": _rnn}


def launches(op: str, number: int) -> Notes:
    """What a call of an op launches; the call's number determines its GPU, its arguments and what is forced."""
    random = Random(f"{op} {number}")
    notes = Notes(random.choice(GPUS))
    try:
        with _forced(op, random):
            OPS[op](random, _engine(notes))
    except RuntimeError as error:
        notes.lines.append(type(error).__name__)
    return notes


def digest(op: str, group: int) -> tuple[str, Counter[str]]:
    """Twelve hex digits of a hash of the launches of a group of calls, and how many of the calls launch each variant."""
    total, variants = hashlib.sha256(), Counter[str]()
    for number in range(group * GROUP, (group + 1) * GROUP):
        notes = launches(op, number)
        total.update("\n".join([str(number), *notes.lines]).encode())
        variants.update(set(notes.variants))
    return total.hexdigest()[:12], variants


def kept() -> dict[str, list[str]]:
    """Op -> the digests of its groups, in order."""
    parts = (line.split(": ") for line in FILE.read_text().splitlines() if not line.startswith("#"))
    return {op: digests.split() for op, digests in parts}


def write() -> None:
    """Stores the digests, and how many calls launch each variant, so that a reader of a change sees its effect."""
    lines = ["# Written by `python -m tests.planning.golden --write`; see there."]
    for op in OPS:
        groups = [digest(op, group) for group in range(CALLS // GROUP)]
        variants = sum((group[1] for group in groups), Counter())
        lines.append(f"# {op}: " + ", ".join(f"{name} {count}" for name, count in sorted(variants.items())))
        lines.append(f"{op}: " + " ".join(group[0] for group in groups))
    FILE.write_text("\n".join([*lines, ""]))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what is launched now")
    parser.add_argument("--show", nargs=2, metavar=("OP", "N"), help="what one call launches")
    options = parser.parse_args(arguments)
    if options.show:
        notes = launches(options.show[0], int(options.show[1]))
        print(notes.gpu.name, *notes.lines, sep="\n")
        return 0
    if options.write:
        write()
        return 0
    changed = 0
    for op, digests in kept().items():
        for group, expected in enumerate(digests):
            if digest(op, group)[0] != expected:
                changed += 1
                print(f"{op}: calls {group * GROUP} to {(group + 1) * GROUP - 1} launch something else")
    return int(changed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
