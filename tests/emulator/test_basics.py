"""The emulated execution model: threads, shared memory, barriers and warps, and reports of mistakes in kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulated import Emulator, LaunchError, arrays, emulate, fill, instances, launch_config

ROWS = instances(
    "basics.cuh",
    ("double_kernel", "float"),
    ("double_kernel", "double"),
    ("reverse_kernel", "float, true"),
    ("reverse_kernel", "float, false"),
    ("warp_sum_kernel", "float"),
    ("warp_sum_kernel", "double"),
    ("deadlock_kernel", "float"),
    ("divergent_kernel", "float"),
    ("overrun_kernel", "float"),
    ("predicate_kernel", "int32_t"),
    ("vote_kernel", "int32_t"),
    ("atomic_kernel", "int32_t"),
    ("convert_kernel", "half"),
    ("convert_kernel", "bfloat16"),
    ("poll_kernel", "float"),
    ("misaligned_kernel", "float"),
)


class Parameters(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("count", ctypes.c_int32)]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulate(ROWS, "basics")


@pytest.mark.parametrize("threads", [1, 31, 256, 1024])
def test_a_grid_covers_its_data(emulator: Emulator, threads: int) -> None:
    x, y = arrays("float32", 5000), np.zeros(5000, "float32")
    emulator.launch("double_kernel<float>", launch_config(7, threads), fill(Parameters, x, y, 5000))
    np.testing.assert_array_equal(y, 2 * x)


def test_every_block_and_thread_index_runs_once(emulator: Emulator) -> None:
    count = np.zeros(1, "int32")
    config = launch_config((3, 4, 5), (2, 3, 7))
    emulator.launch("atomic_kernel<int32_t>", config, fill(Parameters, count, count, 0))
    assert count[0] == 3 * 4 * 5 * 2 * 3 * 7


def test_shared_memory_and_a_barrier(emulator: Emulator) -> None:
    x, y = arrays("float32", 4 * 96), np.zeros(4 * 96, "float32")
    emulator.launch("reverse_kernel<float, true>", launch_config(4, 96, shared_bytes=384), fill(Parameters, x, y, 0))
    np.testing.assert_array_equal(y.reshape(4, 96), x.reshape(4, 96)[:, ::-1])


def test_a_barrier_left_out_shows_as_nan(emulator: Emulator) -> None:
    x, y = arrays("float32", 96), np.zeros(96, "float32")
    emulator.launch("reverse_kernel<float, false>", launch_config(1, 96, shared_bytes=384), fill(Parameters, x, y, 0))
    assert np.isnan(y).any()


def test_the_same_seed_gives_the_same_order(emulator: Emulator) -> None:
    def run(seed: int) -> bytes:
        x, y = np.ones(96, "float32"), np.zeros(96, "float32")
        emulator.seed(seed)
        emulator.launch("reverse_kernel<float, false>", launch_config(1, 96, shared_bytes=384), fill(Parameters, x, y, 0))
        return np.isnan(y).tobytes()

    assert run(3) == run(3)
    assert len({run(seed) for seed in range(8)}) > 1


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_shuffles_sum_a_warp(emulator: Emulator, dtype: str) -> None:
    x = np.arange(256, dtype={"float": "float32", "double": "float64"}[dtype])
    y = np.zeros(8, x.dtype)
    emulator.launch(f"warp_sum_kernel<{dtype}>", launch_config(2, 128), fill(Parameters, x, y, 0))
    np.testing.assert_array_equal(y, x.reshape(8, 32).sum(1))


def test_block_predicates(emulator: Emulator) -> None:
    x, y = np.arange(64, dtype="int32"), np.zeros(3, "int32")
    emulator.launch("predicate_kernel<int32_t>", launch_config(1, 64), fill(Parameters, x, y, 20))
    assert y.tolist() == [20, 0, 1]


def test_votes(emulator: Emulator) -> None:
    x, y = np.zeros(32, "int32"), np.zeros(3, "int32")
    x[[0, 5, 31]] = 1
    emulator.launch("vote_kernel<int32_t>", launch_config(1, 32), fill(Parameters, x, y, 0))
    assert y.view("uint32").tolist() == [1 << 31 | 1 << 5 | 1, 1, 0]


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_conversions_are_those_of_torch(emulator: Emulator, name: str) -> None:
    import torch

    dtype = {"half": torch.float16, "bfloat16": torch.bfloat16}[name]
    stored = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    wide = stored.view(dtype).to(torch.float32)
    bits = wide.view(torch.int32)
    near = torch.cat([(bits + d).view(torch.float32) for d in (-1, 0, 1, 0x7FF, 0x1000, 0x1001, 0x8000, 0x7FFF)])
    x = near[~near.isnan()].contiguous().numpy()
    y, back = np.zeros(len(x), "uint16"), np.zeros(len(x), "float32")
    emulator.launch(f"convert_kernel<{name}>", launch_config(1, 1), fill(ConvertParameters, x, y, back, len(x)))
    expected = torch.from_numpy(x).to(dtype)
    np.testing.assert_array_equal(y, expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(back.view("uint32"), expected.float().numpy().view("uint32"))


class ConvertParameters(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("back", ctypes.c_void_p), ("count", ctypes.c_int32)]


def failure(emulator: Emulator, kernel: str, *, shared_bytes: int = 0, threads: int = 64) -> str:
    x, y = np.zeros(256, "float32"), np.zeros(256, "float32")
    with pytest.raises(LaunchError) as caught:
        emulator.launch(kernel, launch_config(1, threads, shared_bytes=shared_bytes), fill(Parameters, x, y, 0))
    return str(caught.value)


def test_a_deadlock_says_where_everybody_waits(emulator: Emulator) -> None:
    report = failure(emulator, "deadlock_kernel<float>")
    assert "63 of 64 threads left wait for __syncthreads at basics.cuh:" in report
    assert "1 of 64 threads left wait for __shfl_sync at basics.cuh:" in report
    assert "replay this launch with seed" in report


def test_the_emulator_works_on_after_a_failed_launch(emulator: Emulator) -> None:
    failure(emulator, "deadlock_kernel<float>")
    test_shared_memory_and_a_barrier(emulator)


def test_a_barrier_in_divergent_code_is_reported(emulator: Emulator) -> None:
    assert "threads of one block are at different barriers" in failure(emulator, "divergent_kernel<float>")


def test_polling_for_what_nobody_writes_is_a_deadlock(emulator: Emulator) -> None:
    report = failure(emulator, "poll_kernel<float>")
    assert "threads poll for values that no thread will write" in report
    assert "basics.cuh:" in report


def test_a_write_past_shared_memory_is_reported(emulator: Emulator) -> None:
    assert "wrote past its shared memory, at byte 256 of 256" in failure(emulator, "overrun_kernel<float>", shared_bytes=256)


def test_a_misaligned_vector_is_reported(emulator: Emulator) -> None:
    assert "is not a multiple of 16" in failure(emulator, "misaligned_kernel<float>", shared_bytes=256)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (launch_config(1, 1025), "at most 1024 threads"),
        (launch_config(1, (1, 1, 65)), "z at most 64"),
        (launch_config(1, 32, shared_bytes=232449), "a block has at most 232448"),
        (launch_config((1, 65536, 1), 32), "extents are 1 to"),
        (launch_config(0, 32), "extents are 1 to"),
        (launch_config(3, 32, cluster=2), "do not divide"),
        (launch_config(64, 32, shared_bytes=200000, cooperative=True), "64 blocks in a cooperative launch: 16 are resident"),
    ],
)
def test_limits_are_a_gpus(emulator: Emulator, config: object, message: str) -> None:
    x = np.zeros(4, "float32")
    with pytest.raises(LaunchError, match=message):
        emulator.launch("double_kernel<float>", config, fill(Parameters, x, x, 0))


def test_launches_are_counted(emulator: Emulator) -> None:
    before = emulator.launches("double_kernel<double>")
    x = np.zeros(4)
    emulator.launch("double_kernel<double>", launch_config(1, 4), fill(Parameters, x, x, 4))
    assert emulator.launches("double_kernel<double>") == before + 1


def test_threads_without_barriers_are_not_switched(emulator: Emulator) -> None:
    x, y = arrays("float32", 4096), np.zeros(4096, "float32")
    before = emulator.statistics()
    emulator.launch("double_kernel<float>", launch_config(16, 256), fill(Parameters, x, y, 4096))
    after = emulator.statistics()
    assert after.threads - before.threads == 4096
    assert after.switches == before.switches
