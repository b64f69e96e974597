"""What this machine offers the kernels: packages, tools, GPUs, built objects and engines. `doctor` draws the conclusions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import torch_unroll
from torch_unroll import kernels
from torch_unroll.engines import NAMES, cuda, nvrtc, refusal, resolve_precision
from torch_unroll.engines.interface import DTYPES
from torch_unroll.kernels import build, planning, table
from torch_unroll.shapes import dtype_name

#: Packages that engines, benchmarks and builds use.
PACKAGES = ("torch", "numpy", "cupy-cuda12x", "cupy-cuda13x", "numba", "numba-cuda", "cuda-core", "triton", "ninja")
#: Environment variables that change what is built, what runs, or how fast it runs.
VARIABLES = (
    "CUDA_HOME",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCH_CUDA_ARCH_LIST",
    "TORCH_UNROLL_EMULATED",
    "TORCH_UNROLL_ENGINE",
)
_SMI_FIELDS = ("name", "compute_cap", "driver_version", "memory.total", "utilization.gpu", "mig.mode.current")


@dataclass(frozen=True)
class Tool:
    """A build tool: its path and version, or why it is missing."""

    name: str
    path: str | None = None
    version: str | None = None
    lack: str | None = None  # why it is missing, with the remedy


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it, whether or not torch can use it."""

    name: str
    capability: str
    driver: str
    memory_mib: int | None
    busy_percent: int | None
    mig: bool


@dataclass(frozen=True)
class KernelObject:
    """A kernel object, which is a library of compiled kernels: whether it is built, which rows of the kernel table it lacks, and
    which of its kernels the GPU cannot load."""

    path: str
    built: bool
    error: str | None = None  # why it does not load
    kernels: int = 0  # how many it contains
    stale: tuple[str, ...] = ()  # the rows of the table that it lacks
    unloadable: tuple[str, ...] = ()  # the kernels in it that the GPU cannot load
    refusal: str | None = None  # the driver's error for the first of those


@dataclass(frozen=True)
class EngineReport:
    """What an engine does for tensors on one device type: the dtypes that it serves, by op, and why it serves no others."""

    name: str
    device: str
    serves: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()  # each with its remedy, if there is one


@dataclass(frozen=True)
class Survey:
    """Everything that `examine_machine` finds."""

    version: str
    kernel_digest: str
    python: str
    platform: str
    packages: dict[str, str]
    torch_cuda: str | None  # the CUDA version that torch was built for
    torch_sees_gpu: bool
    precision: dict[str, str]  # op -> how torch's settings have its fp32 products computed: "tf32" or "ieee"
    tools: tuple[Tool, ...]
    gpus: tuple[Gpu, ...]
    cuda_object: KernelObject
    emulated_object: KernelObject
    engines: tuple[EngineReport, ...]
    variables: dict[str, str]
    measured_gpus: tuple[str, ...] = ()  # the GPUs on which convolution's choices were measured


def examine_machine() -> Survey:
    """Examines this machine. CUDA is initialised only if torch sees a GPU."""
    available = torch.cuda.is_available()
    devices = ("cpu", "cuda") if available else ("cpu",)
    sample = torch.empty(0, device=devices[-1])
    return Survey(
        version=getattr(torch_unroll, "__version__", "unknown"),
        kernel_digest=kernels.digest(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version for name in PACKAGES if (version := _package_version(name))},
        torch_cuda=torch.version.cuda,
        torch_sees_gpu=available,
        precision={
            "conv2d": resolve_precision("conv", sample),
            "rnn": resolve_precision("rnn", sample),
        },
        tools=tuple(_tools()),
        gpus=tuple(_gpus()),
        cuda_object=examine_object("cuda", nvrtc.architecture_of(torch.cuda.get_device_capability()) if available else None),
        emulated_object=examine_object("cpu", None),
        engines=tuple(_engine(name, device) for name in NAMES for device in devices),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        measured_gpus=tuple(planning.measured("conv2d")),
    )


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tools() -> list[Tool]:
    return [_tool("nvcc", build.find_nvcc), _tool("g++", build.find_host_compiler), _tool("ninja", build.find_ninja)]


def _tool(name: str, find: Callable[[], str]) -> Tool:
    try:
        path = find()
    except build.BuildError as error:
        return Tool(name, lack=str(error))
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", output) or re.search(r"(\d+(?:\.\d+)+)", output)
    return Tool(name, path, version[1] if version else None)


def _gpus() -> list[Gpu]:
    smi = shutil.which("nvidia-smi")
    if not smi:
        return []
    query = [smi, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    return parse_smi(result.stdout) if result.returncode == 0 else []


def parse_smi(lines: str) -> list[Gpu]:
    """The GPUs in nvidia-smi's answer to a query of `_SMI_FIELDS`, in which [N/A] stands for an unknown value."""
    gpus = []
    for line in lines.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_SMI_FIELDS):
            name, capability, driver, memory, busy, mig = cells
            gpus.append(Gpu(name, capability, driver, _integer(memory), _integer(busy), mig == "Enabled"))
    return gpus


def _integer(cell: str) -> int | None:
    return int(cell) if cell.isdecimal() else None


def examine_object(device_type: str, architecture: str | None) -> KernelObject:
    """Examines the kernel object for CUDA ("cuda") or for the emulator ("cpu").

    It is compared with the rows of the kernel table that it should contain: for the emulator all of them, for CUDA those that run
    on the GPU's architecture or, without a GPU, those that run on sm_80 and thus on every GPU that the kernels support.
    """
    path = cuda.library_path(device_type)
    if not path.exists():
        return KernelObject(path=str(path), built=False)
    try:
        loaded = cuda.KernelObject(path)
    except (OSError, AttributeError, RuntimeError) as error:
        return KernelObject(path=str(path), built=True, error=str(error).removesuffix(f"; {cuda.REBUILD_HINT}"))
    rows = [row for row in table.kernels() if device_type == "cpu" or nvrtc.runs_on(row, architecture or "sm_80")]
    stale = tuple(row.expression for row in rows if row.expression not in loaded.index)
    present = [row.expression for row in rows if row.expression in loaded.index] if architecture else []
    statuses = {name: loaded.library.torch_unroll_preload(loaded.index[name]) for name in present}
    unloadable = tuple(name for name, status in statuses.items() if status)
    driver_error = loaded.library.torch_unroll_error_text(statuses[unloadable[0]]).decode() if unloadable else None
    return KernelObject(
        path=str(path),
        built=True,
        kernels=len(loaded.index),
        stale=stale,
        unloadable=unloadable,
        refusal=driver_error,
    )


def _engine(name: str, device: str) -> EngineReport:
    serves: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, None] = {}  # a set that keeps its order
    for family in table.OPS:
        accepted = []
        for dtype in DTYPES:
            if reason := refusal(name, family, torch.device(device), dtype):
                reasons[reason] = None
            else:
                accepted.append(dtype_name(dtype))
        if accepted:
            serves[family] = tuple(accepted)
    return EngineReport(name, device, serves, tuple(reasons))
