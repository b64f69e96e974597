"""Clusters: distributed shared memory, the cluster barrier, mbarriers and asynchronous stores, and reports of their misuse."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulated import Emulator, LaunchError, emulate, fill, instances, launch_config

MISUSES = {
    "not_initialised": "it is not initialised",
    "initialised_twice": "it is initialised twice",
    "too_many_arrivals": "more arrivals than the phase has",
    "bytes_never_come": "wait for an mbarrier at clusters.cuh:",
    "wait_without_arrive": "cluster_wait at clusters.cuh:\\d+ without cluster_arrive",
    "ended_block": "block \\d of the cluster has ended|reached a block that has ended",
}
ROWS = instances(
    "clusters.cuh",
    *(("ring_kernel", f"Ring::{ring}") for ring in ("correct", "no_barrier_at_start", "no_barrier_at_end")),
    ("all_gather_kernel", "2"),
    *(("steps_kernel", size) for size in ("4", "8")),
    *(("misuse_kernel", f"Misuse::{misuse}") for misuse in MISUSES),
)


class Parameters(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p)]


@pytest.fixture(scope="module", params=["plain", "race"])
def emulator(request: pytest.FixtureRequest) -> Emulator:
    return emulate(ROWS, "clusters", request.param)


@pytest.fixture(params=range(3), ids="seed {}".format, autouse=True)
def _seed(request: pytest.FixtureRequest, emulator: Emulator) -> None:
    emulator.seed(request.param)


def launch(
    emulator: Emulator, kernel: str, *, blocks: int = 16, cluster: int = 8, threads: int = 32, shared_bytes: int = 1024
) -> np.ndarray:
    x, y = np.arange(512, dtype="uint32"), np.zeros(512, "uint32")
    if "race" in emulator.library._name:
        emulator.allow_memory(x, y)
    emulator.launch(kernel, launch_config(blocks, threads, cluster=cluster, shared_bytes=shared_bytes), fill(Parameters, x, y))
    return y


@pytest.mark.parametrize("cluster", [1, 2, 16])
def test_a_block_reads_its_neighbours_memory(emulator: Emulator, cluster: int) -> None:
    y = launch(emulator, "ring_kernel<Ring::correct>", cluster=cluster).reshape(16, 32)
    next_block = [block // cluster * cluster + (block + 1) % cluster for block in range(16)]
    np.testing.assert_array_equal(y, 100 * np.array(next_block)[:, None] + np.arange(32))


def test_a_barrier_left_out_at_the_start_is_found(emulator: Emulator) -> None:
    def launch_often() -> None:
        for seed in range(20):  # without race mode only some orders show it
            emulator.seed(seed)
            launch(emulator, "ring_kernel<Ring::no_barrier_at_start>")

    with pytest.raises(LaunchError, match=r"race on byte|has not started|has ended"):
        launch_often()


def test_a_barrier_left_out_at_the_end_is_found(emulator: Emulator) -> None:
    with pytest.raises(LaunchError, match=r"load_cluster at clusters.cuh:\d+: block \d of the cluster has ended"):
        launch(emulator, "ring_kernel<Ring::no_barrier_at_end>")


def test_a_block_writes_to_all(emulator: Emulator) -> None:
    y = launch(emulator, "all_gather_kernel<2>")[:128].reshape(16, 8)
    np.testing.assert_array_equal(y, np.broadcast_to(3 * np.arange(8), (16, 8)))


@pytest.mark.parametrize("cluster", [2, 8])
def test_steps_through_asynchronous_stores(emulator: Emulator, cluster: int) -> None:
    y = launch(emulator, "steps_kernel<4>", blocks=2 * cluster, cluster=cluster)[: 2 * cluster]
    carried = np.arange(cluster)
    for _ in range(6):
        carried = carried.sum() + np.arange(cluster)
    np.testing.assert_array_equal(y, np.tile(carried, 2))


def test_expecting_the_wrong_number_of_bytes_is_a_deadlock(emulator: Emulator) -> None:
    with pytest.raises(LaunchError, match=r"wait for an mbarrier at clusters\.cuh:"):
        launch(emulator, "steps_kernel<8>")


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_reported(emulator: Emulator, misuse: str) -> None:
    with pytest.raises(LaunchError, match=MISUSES[misuse]):
        launch(emulator, f"misuse_kernel<Misuse::{misuse}>", blocks=2, cluster=2, threads=1)


def test_a_cluster_must_be_resident(emulator: Emulator) -> None:
    emulator.multiprocessors(4)
    try:
        with pytest.raises(LaunchError, match="clusters of 8 blocks: 4 blocks are resident at once"):
            launch(emulator, "ring_kernel<Ring::correct>", shared_bytes=200_000)
    finally:
        emulator.multiprocessors(16)
