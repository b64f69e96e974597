"""The environment of a measurement: hardware, versions, clocks."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from torch_unroll.kernels import digest

REPOSITORY = Path(__file__).resolve().parent.parent
_QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active")
#: The bits of clocks_event_reasons that mean a lowered clock: power cap, hardware slowdown, temperature, power brake.
_THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, cwd=REPOSITORY).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def commit() -> str | None:
    """The checked-out commit, with "+" if tracked files differ from it; None outside a repository, or without git."""
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    return None if head is None else head + ("+" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions that identify a measurement."""
    on_gpu = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if on_gpu else None
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "device": properties.name if properties else f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads",
        "device_type": device.type,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "memory_bytes": properties.total_memory if properties else None,
        "l2_bytes": properties.L2_cache_size if properties else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0") if on_gpu else None,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit(),
        "engine_digest": digest(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parse_clocks(line: str) -> dict[str, Any]:
    """Parses a line of nvidia-smi, without units; a value that the driver does not report is None."""

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    sm, memory, power, temperature, reasons = (part.strip() for part in line.split(","))
    return {
        "sm_mhz": number(sm),
        "memory_mhz": number(memory),
        "power_w": number(power),
        "temperature_c": number(temperature),
        "throttled": bool(int(reasons, 16) & _THROTTLED) if reasons.startswith("0x") else None,
    }


def clocks(device: torch.device) -> dict[str, Any] | None:
    """The current clocks, power and temperature of a GPU; None for a CPU, or if nvidia-smi fails."""
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # CUDA and nvidia-smi may number the GPUs differently
    line = _output("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits", "-i", uuid)
    return parse_clocks(line.splitlines()[0]) if line else None
