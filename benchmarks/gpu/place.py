"""The conditions for a run: a usable GPU, built kernels, free memory, a writable folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import clocks, describe
from benchmarks.gpu.work import tell
from torch_unroll.engines import NAMES, cuda, refusal
from torch_unroll.tools import doctor
from torch_unroll.tools.environment import Survey, examine_machine

#: GPU memory that the largest cases need, including torch's results.
_LEAST_FREE_BYTES = 12 << 30


def look(device_name: str) -> None:
    """Reports what a run lacks, the environment, why engines cannot run, the GPU's clocks and free memory, and who else uses it.

    If torch cannot use the GPU, or the kernels need a newer one, only that is reported. The function runs in a separate process,
    because the one that starts the jobs must not touch CUDA.
    """
    device = torch.device(device_name)
    others = _processes() if device.type == "cuda" else []  # asked before this process uses the GPU itself
    if device.type == "cuda" and (lack := lacking(examine_machine())):
        tell("result", lack=lack)
        return
    on_gpu = device.type == "cuda"
    engines = {name: refusal(name, "conv2d", device, torch.bfloat16) for name in NAMES}
    tell(
        "result",
        lack=None if engines["cuda"] else cuda.stale(device),
        environment={**describe(device), "capability": list(torch.cuda.get_device_capability()) if on_gpu else None},
        engines=engines,
        clocks=clocks(device),
        free_bytes=torch.cuda.mem_get_info()[0] if on_gpu else None,
        processes=others,
    )


def _processes() -> list[str]:
    """The processes that compute on the GPU, as nvidia-smi lists them; empty if it fails."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = ["nvidia-smi", "-i", card, "--query-compute-apps=pid,name,used_memory", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in lines if line.strip()]


def lacking(seen: Survey) -> str | None:
    """Why there is no GPU that torch can use and that is new enough for the kernels; None if there is one."""
    if not seen.torch_sees_gpu:
        why = doctor.advice(seen)[0]
        return f"{why.finding}: {why.remedy}; or rehearse on the emulator: python -m benchmarks gpu --device cpu"
    if torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}: the kernels need 8.0 or newer"
    return None


def require_place(seen: dict[str, Any], shared: bool) -> None:
    """Raises ValueError if the device or engine cuda cannot be used, if the kernels were built from other sources, or, unless
    `shared`, if other processes use the GPU or too little of its memory is free."""
    if seen["lack"]:
        raise ValueError(seen["lack"])
    if reason := seen["engines"]["cuda"]:
        raise ValueError(f"engine cuda {reason}")
    if shared or seen["free_bytes"] is None:
        return
    if seen["processes"]:
        raise ValueError(
            f"others use the card ({'; '.join(seen['processes'][:3])}), which disturbs timings: wait, or pass --shared"
        )
    if seen["free_bytes"] < _LEAST_FREE_BYTES:
        free = seen["free_bytes"] >> 30
        raise ValueError(
            f"the card has {free} GiB of free memory, but {_LEAST_FREE_BYTES >> 30} are needed: wait, or pass --shared"
        )


def require_folder(folder: Path) -> None:
    """Creates the folder if necessary; raises OSError if that fails, or if a file of 1 MiB cannot be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.write_bytes(b"\0" * (1 << 20))
    probe.unlink()
