"""Replays golden records (golden/README.md) of a warp's instructions, and makes such records without the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from emulated import Emulator, emulate, instances, launch_config

Record = dict[str, Any]
_TYPES = {"m16n8k16 f16": "half", "m16n8k16 bf16": "bfloat16", "m16n8k8 tf32": "float"}
_ROWS = instances(
    "registers.cuh",
    *(("mma_registers_kernel", cpp) for cpp in _TYPES.values()),
    *(("ldmatrix_registers_kernel", f"{count}, {transposed}") for count in (1, 2, 4) for transposed in ("false", "true")),
    *(("stmatrix_registers_kernel", str(count)) for count in (1, 2, 4)),
    ("tf32_registers_kernel", "float"),
)


class _Parameters(ctypes.Structure):
    """Mirrors `RegisterParameters` in kernels/registers.cuh."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("a", "b", "rows", "d", "memory")), ("count", ctypes.c_int32)]


def _launch(kernel: str, count: int = 0, shared_bytes: int = 0, **arrays: np.ndarray) -> None:
    pointers = {name: array.ctypes.data for name, array in arrays.items()}
    parameters = _Parameters(**pointers, count=count)
    emulate(_ROWS, "registers").launch(kernel, launch_config(1, 32, shared_bytes=shared_bytes), parameters)


def from_hex(text: str, digits: int = 8) -> np.ndarray:
    """Reads words of 4 or 8 hexadecimal digits."""
    dtype = {4: np.uint16, 8: np.uint32}[digits]
    return np.array([int(text[i : i + digits], 16) for i in range(0, len(text), digits)], dtype)


def to_hex(words: np.ndarray) -> str:
    """The inverse of `from_hex`."""
    return "".join(f"{word:0{2 * words.itemsize}x}" for word in words.tolist())


# ---- replays ----------------------------------------------------------------------------------------------------------------


def replay_mma(_: Emulator, record: Record) -> None:
    d = from_hex(record["c"])
    _launch(f"mma_registers_kernel<{_TYPES[record['instruction']]}>", a=from_hex(record["a"]), b=from_hex(record["b"]), d=d)
    np.testing.assert_array_equal(d, from_hex(record["d"]))


def replay_ldmatrix(_: Emulator, record: Record) -> None:
    count, transposed = record["matrices"], "true" if record["transposed"] else "false"
    d = np.zeros(32 * count, np.uint32)
    kernel = f"ldmatrix_registers_kernel<{count}, {transposed}>"
    _launch(kernel, shared_bytes=1024, rows=np.array(record["rows"], np.int32), d=d)
    np.testing.assert_array_equal(d, from_hex(record["registers"]))


def replay_stmatrix(_: Emulator, record: Record) -> None:
    memory = np.zeros(512, np.uint16)
    kernel, rows = f"stmatrix_registers_kernel<{record['matrices']}>", np.array(record["rows"], np.int32)
    _launch(kernel, shared_bytes=1024, rows=rows, a=from_hex(record["registers"]), memory=memory)
    np.testing.assert_array_equal(memory, from_hex(record["shared"], 4))


def replay_tf32(_: Emulator, record: Record) -> None:
    values = from_hex(record["from"])
    d = np.zeros(2 * len(values), np.uint32)
    _launch("tf32_registers_kernel<float>", len(values), a=values, d=d)
    for result, expected in zip(np.split(d, 2), (record["rounded"], record["product"]), strict=True):
        # All NaNs count as equal.
        np.testing.assert_array_equal(_without_nan(result), _without_nan(from_hex(expected)))


def _without_nan(words: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(words.view(np.float32)), np.uint32(0x7FC00000), words)


REPLAY: dict[str, Callable[[Emulator, Record], None]] = {
    "mma": replay_mma,
    "ldmatrix": replay_ldmatrix,
    "stmatrix": replay_stmatrix,
    "tf32": replay_tf32,
}


# ---- records that are made without the emulator -----------------------------------------------------------------------------


def _bits(values: np.ndarray, cpp: str) -> np.ndarray:
    """The bits of small integers converted to the type `cpp`: half, bfloat16 or float."""
    if cpp == "half":
        return values.astype(np.float16).view(np.uint16)
    words = values.astype(np.float32).view(np.uint32)
    return words if cpp == "float" else (words >> 16).astype(np.uint16)


def mma_record(seed: int) -> Record:
    random = np.random.default_rng(seed)
    instruction, cpp = list(_TYPES.items())[seed % 3]
    K, width = (8, 1) if cpp == "float" else (16, 2)  # width: the number of elements in a register
    A, B, C = random.integers(-8, 8, (16, K)), random.integers(-8, 8, (K, 8)), random.integers(0, 64, (16, 8))
    a, b = _bits(A, cpp), _bits(B, cpp)
    lanes: dict[str, list[int]] = {"a": [], "b": [], "c": [], "d": []}
    for lane in range(32):
        g, t = divmod(lane, 4)
        for j in range(4):
            k = width * t + K // 2 * (j >> 1)
            lanes["a"].append(_register(a[g + 8 * (j & 1), k : k + width]))
        for j in range(2):
            k = width * t + K // 2 * j
            lanes["b"].append(_register(b[k : k + width, g]))
        for name, matrix in (("c", C), ("d", C + A @ B)):
            for i in range(4):
                value = matrix[g + 8 * (i >> 1), 2 * t + (i & 1)]
                lanes[name].append(int(np.float32(value).view(np.uint32)))
    return {"instruction": instruction, **{name: to_hex(np.array(words, np.uint32)) for name, words in lanes.items()}}


def _register(elements: np.ndarray) -> int:
    """Packs the bits of one or two elements into a register, the first element lowest."""
    return sum(int(element) << 16 * i for i, element in enumerate(elements))


def _places(rows: list[int], count: int, transposed: bool) -> np.ndarray:
    """The index in shared memory of the element that each half of each lane's registers holds: (lane, register, half).

    `rows` are the rows of 8 elements whose addresses the lanes pass to ldmatrix or stmatrix.
    """
    places = np.zeros((32, count, 2), int)
    for lane, j, half in np.ndindex(places.shape):
        g, t = divmod(lane, 4)
        row, column = (2 * t + half, g) if transposed else (g, 2 * t + half)
        places[lane, j, half] = rows[8 * j + row] * 8 + column
    return places


def ldmatrix_record(seed: int) -> Record:
    rows = np.random.default_rng(seed).permutation(64)[:32].tolist()
    count, transposed = (1, 2, 4)[seed % 3], bool(seed // 3 % 2)
    places = _places(rows, count, transposed)
    registers = (places[..., 0] | places[..., 1] << 16).astype(np.uint32).reshape(-1)
    return {"matrices": count, "transposed": transposed, "rows": rows, "registers": to_hex(registers)}


def stmatrix_record(seed: int) -> Record:
    rows = np.random.default_rng(seed).permutation(64)[:32].tolist()
    count = (1, 2, 4)[seed % 3]
    halves = np.arange(64 * count, dtype=np.uint32).reshape(32, count, 2)
    shared = np.full(512, 0xFFFF, np.uint16)
    shared[_places(rows, count, transposed=False)] = halves
    registers = (halves[..., 0] | halves[..., 1] << 16).reshape(-1)
    return {"matrices": count, "rows": rows, "registers": to_hex(registers), "shared": to_hex(shared)}


def tf32_record(seed: int) -> Record:
    """A record of normal numbers that rounding does not turn into infinity."""
    random = np.random.default_rng(seed)
    exponent, mantissa = random.integers(1, 254, 64, np.uint32), random.integers(0, 1 << 23, 64, np.uint32)
    values = random.integers(0, 2, 64, np.uint32) << 31 | exponent << 23 | mantissa
    rounded, product = (values + 0x1000) & ~np.uint32(0x1FFF), values & ~np.uint32(0x1FFF)
    return {"from": to_hex(values), "rounded": to_hex(rounded), "product": to_hex(product)}


MADE: dict[str, tuple[Callable[[int], Record], str]] = {  # the function that makes a record, and the field with its results
    "mma": (mma_record, "d"),
    "ldmatrix": (ldmatrix_record, "registers"),
    "stmatrix": (stmatrix_record, "shared"),
    "tf32": (tf32_record, "product"),
}
