"""What plans and predictions know about GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .table import LaunchPlan


def _always_fits(plan: LaunchPlan) -> int:
    return 2**31


@dataclass(frozen=True, eq=False)
class Device:
    """A GPU as plans see it.

    A launcher keeps one object for each device. Objects are hashed and compared by identity, which is fast: every call
    looks up its selection in a cache whose key includes the device.
    """

    multiprocessors: int
    capability: tuple[int, int]
    shared_bytes_per_block: int
    l2_bytes: int
    name: str = ""  # as the driver reports it; empty for the emulator's device
    #: How many blocks of a plan, or clusters if the plan has clusters, the device holds at once.
    resident: Callable[[LaunchPlan], int] = _always_fits


class Rates(NamedTuple):
    """Dense rates and bandwidth of one multiprocessor."""

    clock_hz: float
    half: int  # FLOP per clock of the tensor cores: fp16 and bf16 with sums in fp32
    tf32: int  # FLOP per clock of the tensor cores
    fp32: int  # FLOP per clock of the CUDA cores
    fp64: int  # FLOP per clock of the CUDA cores
    memory: float  # bytes per clock of device memory, divided by the number of multiprocessors


#: Compute capability -> dense rates and bandwidth from the data sheet, divided by the number of multiprocessors and the boost
#: clock. Predictions are based on them.
RATES = {
    (8, 0): Rates(1.41e9, 2048, 1024, 128, 64, 13.4),  # A100 80 GB: 312 TFLOP/s, 2.04 TB/s, 108 multiprocessors
    (8, 6): Rates(1.74e9, 1024, 512, 256, 4, 4.8),  # A40: 150 TFLOP/s, 0.7 TB/s, 84
    (8, 9): Rates(2.52e9, 1024, 512, 256, 4, 2.4),  # L40S: 362 TFLOP/s, 0.86 TB/s, 142
    (9, 0): Rates(1.83e9, 4096, 2048, 256, 128, 19.9),  # H200: 989 TFLOP/s, 4.8 TB/s, 132; an H100 has 13.9 bytes per clock
    (10, 0): Rates(1.85e9, 8192, 4096, 256, 128, 29.2),  # B200: 2.25 PFLOP/s, 8 TB/s, 148
}
#: Seconds that a launch adds when it follows another one on the stream: an estimate.
LAUNCH_SECONDS = 2.5e-6


def rates(device: Device) -> Rates:
    """The rates of the newest architecture in `RATES` that is not newer than the device, or of the oldest if all are newer."""
    older = [capability for capability in RATES if capability <= device.capability]
    return RATES[max(older, default=min(RATES))]
