"""What this machine offers the kernels: packages, tools, GPUs, built objects, engines. `doctor` draws the conclusions."""

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
from torch_unroll.engines import DTYPES, NAMES, cuda, nvrtc, refusal, resolve_precision
from torch_unroll.engines.interface import MODULES
from torch_unroll.kernels import build, planning, table

#: Packages that engines, benchmarks and builds use.
PACKAGES = ("torch", "numpy", "cupy-cuda12x", "cupy-cuda13x", "numba", "numba-cuda", "cuda-core", "triton", "ninja")
#: Settings from outside that change what runs, or how fast.
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
    """A build tool: its version and place, or why there is none."""

    name: str
    path: str | None = None
    version: str | None = None
    lack: str | None = None  # with the remedy


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi sees it, whether or not torch can use it."""

    name: str
    capability: str
    driver: str
    memory_mib: int | None
    busy_percent: int | None
    mig: bool


@dataclass(frozen=True)
class KernelObject:
    """A built kernel object: what of the kernel table it holds, and what of that the GPU takes."""

    path: str
    built: bool
    error: str | None = None  # why it does not load
    kernels: int = 0
    stale: tuple[str, ...] = ()  # rows of the table that it lacks
    unloadable: tuple[str, ...] = ()  # kernels it holds that the GPU refuses
    refusal: str | None = None  # in the driver's words


@dataclass(frozen=True)
class EngineReport:
    """What an engine does for tensors of one device type: per op family the dtypes it serves, else the reason."""

    name: str
    device: str
    serves: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()  # each says why not, and the remedy


@dataclass(frozen=True)
class Survey:
    """Everything `doctor` found."""

    version: str
    kernel_digest: str
    python: str
    platform: str
    packages: dict[str, str]
    torch_cuda: str | None  # the CUDA version torch was built for
    torch_sees_gpu: bool
    precision: dict[str, str]  # torch's switches for fp32 products
    tools: tuple[Tool, ...]
    gpus: tuple[Gpu, ...]
    cuda_object: KernelObject
    emulated_object: KernelObject
    engines: tuple[EngineReport, ...]
    variables: dict[str, str]
    measured_gpus: tuple[str, ...] = ()  # those on which convolution's choices were measured


def survey() -> Survey:
    """Looks at this machine; starts CUDA only where torch sees a GPU."""
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
        cuda_object=_kernel_object("cuda", nvrtc.architecture_of(torch.cuda.get_device_capability()) if available else None),
        emulated_object=_kernel_object("cpu", None),
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
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+\.\d+)", said) or re.search(r"(\d+(?:\.\d+)+)", said)
    return Tool(name, path, version[1] if version else None)


def _gpus() -> list[Gpu]:
    smi = shutil.which("nvidia-smi")
    if not smi:
        return []
    query = [smi, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    return parse_smi(found.stdout) if found.returncode == 0 else []


def parse_smi(lines: str) -> list[Gpu]:
    """What nvidia-smi answers to the query of `_SMI_FIELDS`; it writes [N/A] for what a GPU does not tell."""
    gpus = []
    for line in lines.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_SMI_FIELDS):
            name, capability, driver, memory, busy, mig = cells
            gpus.append(Gpu(name, capability, driver, _integer(memory), _integer(busy), mig == "Enabled"))
    return gpus


def _integer(cell: str) -> int | None:
    return int(cell) if cell.isdecimal() else None


def _kernel_object(device_type: str, architecture: str | None) -> KernelObject:
    """An object beside the rows of the table that it should hold: those that run on the GPU's architecture. Where there is none,
    all for the emulator, and of the CUDA object, whose targets can be any, those that every target has.
    """
    path = cuda.library_path(device_type)
    if not path.exists():
        return KernelObject(str(path), built=False)
    try:
        loaded = cuda.KernelObject(path)
    except (OSError, AttributeError, RuntimeError) as error:
        return KernelObject(str(path), built=True, error=str(error).removesuffix(f"; {cuda.REBUILD_HINT}"))
    rows = [row for row in table.kernels() if device_type == "cpu" or nvrtc.runs_on(row, architecture or "sm_80")]
    stale = tuple(row.expression for row in rows if row.expression not in loaded.index)
    held = [row.expression for row in rows if row.expression in loaded.index] if architecture else []
    statuses = {name: loaded.library.torch_unroll_preload(loaded.index[name]) for name in held}
    unloadable = tuple(name for name, status in statuses.items() if status)
    refusal = loaded.library.torch_unroll_error_text(statuses[unloadable[0]]).decode() if unloadable else None
    return KernelObject(str(path), True, None, len(loaded.index), stale, unloadable, refusal)


def _engine(name: str, device: str) -> EngineReport:
    serves: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, None] = {}  # in the order met
    for family in dict.fromkeys(MODULES.values()):
        functions = [function for function, module in MODULES.items() if module == family]
        accepted = []
        for dtype in DTYPES:
            refusals = [refusal(name, function, torch.device(device), dtype) for function in functions]
            given = [reason for reason in refusals if reason]
            if given:
                reasons[given[0]] = None
            else:
                accepted.append(str(dtype).removeprefix("torch."))
        if accepted:
            serves[family] = tuple(accepted)
    return EngineReport(name, device, serves, tuple(reasons))
