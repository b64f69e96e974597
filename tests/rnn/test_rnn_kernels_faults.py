"""Faults are planted in the persistent kernels, one at a time. Each must be noticed; else passing tests would prove nothing."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import pytest
import torch

from tests.planted import Fault, launch_from
from tests.rnn.test_rnn_kernels import Case
from torch_unroll.engines import cuda
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.rnn.tile import arithmetic
from torch_unroll.kernels.cuda.rnn.variants import KERNELS
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import LaunchPlan
from torch_unroll.shapes import dtype_name

SEEDS = 20


@dataclass(frozen=True)
class RnnFault(Fault):
    """A fault, and the variant in which it must be noticed."""

    variant: str
    H: int = 64
    dtype: torch.dtype = torch.bfloat16


FAULTS = (
    RnnFault("none, grid_exchange", "grid_exchange.cuh", "", "", "grid_exchange"),
    RnnFault("none, cluster", "cluster.cuh", "", "", "cluster"),
    RnnFault("none, single_block", "single_block.cuh", "", "", "single_block"),
    RnnFault(
        "nobody waits", "grid_exchange.cuh", "return waits && has_sentinel;", "return false;", "grid_exchange", mode="plain"
    ),
    RnnFault(
        "published before it is complete",
        "grid_exchange.cuh",
        "const uint4 bits = persistent::gather_lanes(publishable(value));",
        "const uint4 bits = persistent::gather_lanes(publishable(value));\n"
        "    if (stored && unit % kPerStore == 0) store_relaxed(reinterpret_cast<uint4*>(out + unit), uint4{});",
        "grid_exchange",
        mode="plain",
    ),
    # Planted in fp32, because rounding to a 16-bit dtype turns every NaN into the same one.
    RnnFault(
        "the sentinel as a result",
        "grid_exchange.cuh",
        "sentinel >> 1",
        "sentinel",
        "grid_exchange",
        mode="plain",
        dtype=torch.float32,
    ),
    RnnFault("one buffer of sums", "persistent.cuh", "sums + parity * Sums::size", "sums", "grid_exchange"),
    RnnFault(
        "no barrier before the sums",
        "persistent.cuh",
        "warp_sums.put(product, 0);\n      __syncthreads();",
        "warp_sums.put(product, 0);",
        "cluster",
    ),
    RnnFault("no cluster barrier at the start", "cluster.cuh", "cluster_sync();", "__syncthreads();", "cluster"),
    RnnFault("the slot that is being read", "cluster.cuh", "state.at(buffer ^ 1, column", "state.at(buffer, column", "cluster"),
    RnnFault("a block nobody waits for", "cluster.cuh", "rank < blocks", "rank < int(cluster_size())", "cluster", H=32),
    RnnFault("stores after the last step", "cluster.cuh", "if (s + 1 >= products) return;", "", "cluster", mode="plain"),
    RnnFault(
        "bytes that never come", "cluster.cuh", "return uint32_t(kTileColumns", "return 16 + uint32_t(kTileColumns", "cluster"
    ),
    RnnFault("no barrier between steps", "single_block.cuh", "s + 1);\n    __syncthreads();", "s + 1);", "single_block"),
)


class FaultyLauncher:
    """Launches kernels compiled with the fault on the emulator, which it reports as a GPU of six multiprocessors.

    The kernels are those of the fault's variant and dtype, forward and backward, with at most two row tiles.
    """

    def __init__(self, fault: RnnFault):
        math = arithmetic(dtype_name(fault.dtype), "ieee")
        rows = [row for row in KERNELS if row.name == f"rnn_{fault.variant}_kernel" and row.arguments[0] == math]
        self.kernels = fault.kernels("rnn", [row for row in rows if row.arguments[2:] in ((), ("1",), ("2",))])

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        launch_from(self.kernels, plan, parameters)

    def properties(self, device: torch.device) -> Device:
        return replace(cuda.LAUNCHER.properties(device), multiprocessors=6)


def noticed(fault: RnnFault) -> str | None:
    """Runs the kernels under up to `SEEDS` schedules, until one reveals the fault.

    Returns the emulator's report or "wrong results"; None if no schedule reveals the fault.
    """
    launcher = FaultyLauncher(fault)
    bits = torch.int16 if fault.dtype.itemsize == 2 else torch.int32
    case = Case(5, 9, fault.H, 1, fault.dtype)
    case.z[1, 0, 5] = torch.full((1,), -1, dtype=bits).view(fault.dtype)[0]  # a NaN that looks like the sentinel
    expected = case.run("identity", "ieee")
    for seed in range(SEEDS):
        launcher.kernels.library.torch_unroll_emulator_seed(ctypes.c_uint64(seed))
        try:
            results = case.run("identity", "ieee", launcher)
        except RuntimeError as error:
            return str(error)
        for result, right in zip(results, expected, strict=True):
            if not torch.equal(result.view(bits), right.view(bits)):
                return "wrong results"
    return None


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.old], ids=lambda fault: fault.name)
def test_the_sources_have_the_text_that_a_fault_replaces(fault: RnnFault) -> None:
    fault.text("rnn")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_are_noticed(fault: RnnFault) -> None:
    with planning.force("rnn", fault.variant):
        report = noticed(fault)
    print(report)
    assert (report is None) == (not fault.old), report
