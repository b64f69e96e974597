"""The emulator reproduces what a Hopper GPU did, bit for bit except for NaNs in the records `tf32` (golden/README.md).

Kinds that have not been recorded are skipped. Records that a model generates show that each kind can be replayed, and that a
wrong record fails.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import golden_registers
import hopper_model as model
import numpy as np
import pytest
from emulated import Emulator, LaunchError, emulate
from golden_registers import from_hex, to_hex
from hopper_launches import MAJORS, ROWS, copy_box, copy_box_anywhere, multiply, spec_of

from torch_unroll.kernels.arithmetic import ceil_divide
from torch_unroll.kernels.tensor_map import TensorMapSpec

Record = dict[str, Any]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulate(ROWS, "hopper")


@pytest.fixture
def rounding(emulator: Emulator) -> Iterator[None]:
    """Makes copies round to nearest even, as in the model's records."""
    with emulator.arithmetic(copied=False):
        yield


def replay_im2col(emulator: Emulator, record: Record) -> None:
    C, W, H, N = record["tensor"]
    tensor = np.arange(1, 1 + C * W * H * N, dtype=np.uint16).reshape(N, H, W, C)
    spec = spec_of(
        tensor, "bfloat16", record["swizzle"], element_stride=(1, *record["stride"], 1), lower=tuple(record["lower"]),
        upper=tuple(record["upper"]), channels=record["channels"], pixels=record["pixels"],
    )  # fmt: skip
    replay_box(emulator, record, spec, tensor, record["offset"], record["pixels"], allowed=record["start"][3] < N)


def replay_tiled(emulator: Emulator, record: Record) -> None:
    C, W, H, N = record["tensor"]
    tensor = np.arange(1, 1 + C * W * H * N, dtype=np.uint16).reshape(N, H, W, C)
    spec = spec_of(
        tensor, "bfloat16", record["swizzle"], box=tuple(record["box"]), element_stride=(1, *record["stride"])
    )  # fmt: skip
    rows = prod(ceil_divide(extent, stride) for extent, stride in zip(record["box"][1:], record["stride"], strict=True))
    replay_box(emulator, record, spec, tensor, (0, 0), rows, allowed=True)


def replay_box(
    emulator: Emulator,
    record: Record,
    spec: TensorMapSpec,
    tensor: np.ndarray,
    offset: Sequence[int],
    rows: int,
    *,
    allowed: bool,
) -> None:
    """Replays a copy without a kernel and, if the emulator accepts the copy in kernels, also in a kernel.

    `allowed` says whether a copy in a kernel may start at the record's coordinates.
    """
    at, arguments = record["base"], (spec, tensor, record["start"], offset)
    if record["encoded"]:
        with pytest.raises(LaunchError):
            copy_box_anywhere(emulator, *arguments, size=rows * record["pitch"], at=at)
        return
    assert record["arrived"], "another number of bytes arrived than the emulator's copy has"
    expected = from_hex(record["shared"], 4)
    copied = copy_box_anywhere(emulator, *arguments, size=rows * record["pitch"], at=at)
    np.testing.assert_array_equal(copied.view(np.uint16), expected)
    if allowed and record["swizzle"] and at % (8 * record["swizzle"]) == 0:
        copied = copy_box(emulator, *arguments, rows=rows, at=at, fill=0xFF)[at:]
        np.testing.assert_array_equal(copied.view(np.uint16), expected)


def replay_tma_tf32(emulator: Emulator, record: Record) -> None:
    if record["type"] != "TFLOAT32":
        return  # a copy without conversion, which the kernels do not use
    assert record["arrived"]
    tensor = from_hex(record["from"], 8).view(np.float32).reshape(1, 1, 8, 32)
    expected = from_hex(record["to"], 8)
    spec = spec_of(tensor, "float32", 0, box=(32, 8, 1, 1))

    def copied() -> np.ndarray:
        return copy_box_anywhere(emulator, spec, tensor, (0, 0, 0, 0), (0, 0), size=1024, at=0).view(np.uint32)

    fits_by_advice = {}
    for name, truncate in (("nearest_even", False), ("truncate", True)):
        with emulator.arithmetic(copied=truncate):
            advice = f"kCopied in runtime/arithmetic.cpp must be Tf32::{name}"
            fits_by_advice[advice] = np.array_equal(copied(), expected)
    np.testing.assert_array_equal(copied(), expected, "; ".join(advice for advice, fits in fits_by_advice.items() if fits))


def replay_wgmma_descriptor(emulator: Emulator, record: Record) -> None:
    if not record["swizzle"]:
        return  # the kernels always use a swizzle
    dtype, cpp = {"bf16": (np.uint16, "bfloat16"), "tf32": (np.float32, "float")}[record["type"]]
    size = np.dtype(dtype).itemsize
    depth = 32 // size
    region = np.arange((32 << 10) // size)
    identity = model.depth_major(as_element(np.eye(64, 2 * depth), dtype), 32)
    major = {"K": "depth", "MN": "rows"}[record["major"]]
    majors = f"Major::{major}, {MAJORS[0][:12]}" if record["operand"] == "A" else f"{MAJORS[0][:12]}, Major::{major}"
    read = np.zeros((64, depth), int)
    for shift in (0, 8):  # one byte of the index at a time, because both types represent bytes exactly
        image = as_element(region >> shift & 255, dtype).view(np.uint8)
        tested = model.Operand(image, record["leading"], record["stride"], record["swizzle"], 0, record["start"])
        a, b = (tested, identity) if record["operand"] == "A" else (identity, tested)
        d = multiply(emulator, f"wgmma_kernel<{cpp}, 64, {majors}, Mistake::none>", a, b, 64, steps=1) - 1
        read += (d[:, :depth] if record["operand"] == "A" else d[:depth].T).astype(int) << shift
    np.testing.assert_array_equal(read.reshape(-1), from_hex(record["element"], 4))


def as_element(values: np.ndarray, dtype: type) -> np.ndarray:
    """Converts values to float32 or, for any other dtype, to bfloat16: the upper 16 bits of float32."""
    wide = values.astype(np.float32)
    return wide if dtype is np.float32 else (wide.view(np.uint32) >> 16).astype(np.uint16)


REPLAY: dict[str, Callable[[Emulator, Record], None]] = {
    "im2col": replay_im2col,
    "tiled": replay_tiled,
    "tma_tf32": replay_tma_tf32,
    "wgmma_descriptor": replay_wgmma_descriptor,
    **golden_registers.REPLAY,
}


def replay(emulator: Emulator, directory: Path, kind: str) -> int:
    """Replays the records of a kind and returns their number."""
    records = [json.loads(line) for line in gzip.decompress((directory / f"{kind}.jsonl.gz").read_bytes()).splitlines()]
    for record in records:
        REPLAY[kind](emulator, record)
    return len(records)


@pytest.mark.parametrize("kind", REPLAY)
def test_the_emulator_does_what_a_gpu_did(emulator: Emulator, kind: str) -> None:
    if not (GOLDEN / f"{kind}.jsonl.gz").exists():
        pytest.skip(f"golden/{kind}.jsonl.gz has not been recorded yet")
    assert replay(emulator, GOLDEN, kind)


def test_whatever_is_recorded_is_replayed() -> None:
    programs = Path(__file__).parents[2].glob("benchmarks/first_light/golden_*.cu")
    recorded = {kind for program in programs for kind in re.findall(r'emit\("golden_(\w+)"', program.read_text())}
    assert recorded == set(REPLAY) == set(MADE)


# ---- records that the model generates


def im2col_record(seed: int) -> Record:
    random = np.random.default_rng(seed)
    swizzle, base = [0, 32, 64, 128][seed % 4], [0, 0, 128, 640][seed // 4 % 4]
    channels, pixels = 8 * int(random.integers(1, (swizzle or 64) // 16 + 1)), [16, 128, 256, 64][seed // 2 % 4]
    C, W, H, N = extent = [8 * int(random.integers(1, 9)), *random.integers(4, 13, 2).tolist(), int(random.integers(1, 4))]
    lower, upper, stride = [-1, -2], [0, -1], [1 + seed % 2, 2]
    channel, image = [channels, C - 8, C, 0][seed // 8 % 4], [N - 1, 0, N, N - 1, N + 1][seed % 5]
    start = [channel, lower[0] + stride[0], lower[1], image]
    offset = random.integers(0, 4, 2).tolist()
    record: Record = {
        "tensor": extent, "lower": lower, "upper": upper, "stride": stride, "offset": offset, "channels": channels,
        "pixels": pixels, "start": start, "swizzle": swizzle, "base": base, "pitch": swizzle or channels * 2,
    }  # fmt: skip
    if seed % 8 == 7:
        return record | {"upper": [-W - 2, 0], "encoded": 1, "arrived": True, "shared": ""}
    tensor = np.arange(1, 1 + C * W * H * N, dtype=np.uint16).reshape(N, H, W, C)
    rows = model.im2col(tensor, lower, upper, stride, start, offset, channels, pixels)
    shared = model.in_shared_memory(rows, swizzle, base=base)
    return record | {"encoded": 0, "arrived": True, "shared": to_hex(shared.view(np.uint16))}


def tiled_record(seed: int) -> Record:
    random = np.random.default_rng(seed)
    swizzle, base = [128, 64, 32, 0][seed % 4], [0, 0, 128, 640][seed // 4 % 4]
    channels = 8 * int(random.integers(1, (swizzle or 64) // 16 + 1))
    box = [channels, *([1, 1, 64 << seed % 3] if seed % 2 else random.integers(1, 5, 3).tolist())]
    stride = [1, 1, 1] if seed % 2 else random.integers(1, 4, 3).tolist()
    extent = [8 * int(random.integers(1, 9)), *random.integers(1, 5, 2).tolist(), int(random.integers(1, 90))]
    inside, beyond, before = [0] * 4, extent, [-length // 2 for length in box]
    across = [max(0, size - length // 2) for size, length in zip(extent, box, strict=True)]
    start = [int(random.choice(choices)) for choices in zip(inside, inside, across, across, beyond, before, strict=True)]
    record: Record = {
        "tensor": extent, "box": box, "stride": stride, "start": start, "swizzle": swizzle, "base": base,
        "pitch": swizzle or channels * 2,
    }  # fmt: skip
    if seed % 8 == 7:
        return record | {"stride": [1, 9, 1], "encoded": 1, "arrived": True, "shared": ""}
    tensor = np.arange(1, 1 + prod(extent), dtype=np.uint16).reshape(extent[::-1])
    shared = model.in_shared_memory(model.tiled(tensor, start, box, (1, *stride)), swizzle, base=base)
    return record | {"encoded": 0, "arrived": True, "shared": to_hex(shared.view(np.uint16))}


def tma_tf32_record(seed: int, *, truncate: bool = False) -> Record:
    words = np.random.default_rng(seed).integers(0, 1 << 32, 256, np.uint32)
    kind = ["TFLOAT32", "FLOAT32"][seed % 2]
    to = words if seed % 2 else model.tf32(words.view(np.float32), truncate=truncate).view(np.uint32)
    return {"type": kind, "arrived": True, "from": to_hex(words), "to": to_hex(to)}


def wgmma_descriptor_record(seed: int) -> Record:
    kind, major, swizzle = ["bf16", "tf32", "bf16"][seed % 3], ["K", "K", "MN"][seed % 3], [32, 64, 128][seed // 3 % 3]
    start = [0, swizzle - 32, 2 * 8 * swizzle][seed // 9 % 3 if major == "K" else 2 * (seed // 9 % 2)]
    leading, stride = [2048, 8192][seed % 2], 8 * swizzle * (1 + seed // 2 % 2)
    element = model.element_read(major, swizzle, start, leading, stride, {"bf16": 2, "tf32": 4}[kind])
    record = {"type": kind, "operand": "AB"[seed // 3 % 2], "major": major, "swizzle": swizzle, "start": start}
    return record | {"leading": leading, "stride": stride, "element": to_hex(element.reshape(-1).astype(np.uint16))}


MADE: dict[str, tuple[Callable[[int], Record], str]] = {  # the function that makes a record, and the field with its results
    "im2col": (im2col_record, "shared"),
    "tiled": (tiled_record, "shared"),
    "tma_tf32": (tma_tf32_record, "to"),
    "wgmma_descriptor": (wgmma_descriptor_record, "element"),
    **golden_registers.MADE,
}


def write(directory: Path, kind: str, records: list[Record]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / f"{kind}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("kind", MADE)
def test_records_are_replayed(emulator: Emulator, kind: str, tmp_path: Path) -> None:
    make, _ = MADE[kind]
    write(tmp_path, kind, [make(seed) for seed in range(32)])
    assert replay(emulator, tmp_path, kind) == 32


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("kind", MADE)
def test_a_record_of_something_else_fails(emulator: Emulator, kind: str, tmp_path: Path) -> None:
    make, field = MADE[kind]
    record = make(2)
    text = record[field]
    record[field] = text[:4] + f"{int(text[4:8], 16) ^ 1:04x}" + text[8:]
    write(tmp_path, kind, [record])
    with pytest.raises(AssertionError):
        replay(emulator, tmp_path, kind)


@pytest.mark.parametrize(("truncate", "name"), [(False, "nearest_even"), (True, "truncate")])
def test_the_record_decides_how_copies_round(emulator: Emulator, truncate: bool, name: str, tmp_path: Path) -> None:
    """A record of one rounding mode can be replayed in that mode only; in the other mode, the failure says which mode fits."""
    write(tmp_path, "tma_tf32", [tma_tf32_record(seed, truncate=truncate) for seed in range(8)])
    with emulator.arithmetic(copied=truncate):
        assert replay(emulator, tmp_path, "tma_tf32") == 8
    with (
        emulator.arithmetic(copied=not truncate),
        pytest.raises(AssertionError, match=f"(?s)^[^;]*kCopied in runtime/arithmetic.cpp must be Tf32::{name}\n"),
    ):
        replay(emulator, tmp_path, "tma_tf32")
