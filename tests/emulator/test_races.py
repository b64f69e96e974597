"""Race mode reports planted races and accesses outside of memory with their source lines, and accepts correct kernels."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from emulated import KERNELS, Emulator, LaunchError, arrays, emulate, fill, instances, launch_config

PAIRS = {  # kernel -> number of blocks, whether the launch is cooperative, part of a source line that the report names
    "block_sum_kernel": (3, False, "shared[threadIdx.x] += shared"),
    "rotate_kernel": (1, False, "shared[threadIdx.x] = value"),
    "warp_exchange_kernel": (1, False, "shared[threadIdx.x ^ 1]"),
    "overlap_kernel": (2, False, "bytes[kCorrect"),
    "hand_over_kernel": (2, True, "p.y[blockDim.x + threadIdx.x] ="),
    "last_block_kernel": (4, False, "sum += p.y"),
    "copied_kernel": (1, False, "shared[blockDim.x - 1"),
}
ROWS = instances(
    "races.cuh",
    *((name, correct) for name in PAIRS for correct in ("true", "false")),
    *(("outside_kernel", str(where)) for where in range(4)),
)


class Parameters(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("flag", ctypes.c_void_p), ("count", ctypes.c_int32)]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulate(ROWS, "races", "race")


def launch(emulator: Emulator, kernel: str, blocks: int, cooperative: bool) -> np.ndarray:
    x, y, flag = arrays("float32", 256), np.zeros(256, "float32"), np.zeros(1, "uint32")
    emulator.allow_memory(x, y, flag)
    config = launch_config(blocks, 32, shared_bytes=128, cooperative=cooperative)
    emulator.launch(kernel, config, fill(Parameters, x, y, flag, 256))
    return y


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(4))
def test_a_correct_kernel_is_clean(emulator: Emulator, name: str, seed: int) -> None:
    blocks, cooperative, _ = PAIRS[name]
    emulator.seed(seed)
    launch(emulator, f"{name}<true>", blocks, cooperative)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(4))
def test_a_race_is_found_in_any_order(emulator: Emulator, name: str, seed: int) -> None:
    blocks, cooperative, _ = PAIRS[name]
    emulator.seed(seed)
    with pytest.raises(LaunchError, match=r"race on .*memory"):
        launch(emulator, f"{name}<false>", blocks, cooperative)


@pytest.mark.parametrize("name", PAIRS)
def test_the_report_names_the_line(emulator: Emulator, name: str) -> None:
    blocks, cooperative, text = PAIRS[name]
    with pytest.raises(LaunchError) as caught:
        launch(emulator, f"{name}<false>", blocks, cooperative)
    source = (KERNELS / "races.cuh").read_text().splitlines()
    lines = [int(line) for line in re.findall(r"races\.cuh:(\d+)", str(caught.value))]
    assert any(text in source[line - 1] for line in lines), str(caught.value)


@pytest.mark.parametrize(("where", "message"), [(0, "outside of memory"), (1, "outside of memory"), (3, "outside of memory")])
def test_global_memory_has_an_end(emulator: Emulator, where: int, message: str) -> None:
    with pytest.raises(LaunchError, match=rf"{message}: the thread (reads|writes) \d+ bytes .* at races.cuh:\d+"):
        launch(emulator, f"outside_kernel<{where}>", 1, False)


def test_shared_memory_has_an_end(emulator: Emulator) -> None:
    with pytest.raises(
        LaunchError, match=r"outside of shared memory: the thread reads 4 bytes at byte 1024 of 128, at races.cuh:\d+"
    ):
        launch(emulator, "outside_kernel<2>", 1, False)


def test_a_launch_is_ordered_after_the_one_before(emulator: Emulator) -> None:
    for _ in range(2):  # the second launch may write the bytes that the first wrote
        launch(emulator, "overlap_kernel<true>", 2, False)
