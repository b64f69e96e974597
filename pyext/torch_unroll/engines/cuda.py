"""Engine `cuda`: the kernels built ahead of time, called through the C interface of kernels/cuda/launch.cu.

CUDA tensors are served by `lib/libtorch_unroll_cuda.so`. CPU tensors are served by the emulated object, which runs the
same kernels on the host: `lib/libtorch_unroll_emulated.so`, or the file that TORCH_UNROLL_EMULATED names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import torch

from torch_unroll.engines.compiled import gpu
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.interface import DTYPES, Engine
from torch_unroll.kernels import device_digest, environment, layout, table
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.interface import INTERFACE, CLaunchConfig
from torch_unroll.kernels.table import Kernel, LaunchPlan
from torch_unroll.kernels.tensor_map import TensorMap, TensorMapSpec

LIBRARIES = Path(__file__).resolve().parent.parent / "lib"
BUILD_HINT = "build it with: pip install . (needs nvcc; python -m torch_unroll doctor says what is missing)"
REBUILD_HINT = "build it again: pip install . (of the emulated kernels: python kernels/build.py emulated)"
_NO_KERNEL_IMAGE = 209  # cudaErrorNoKernelImageForDevice


def library_path(device_type: str) -> Path:
    """Returns the path of the kernel object for a type of device, whether it has been built or not."""
    if device_type == "cuda":
        return LIBRARIES / "libtorch_unroll_cuda.so"
    return environment.path("TORCH_UNROLL_EMULATED") or LIBRARIES / "libtorch_unroll_emulated.so"


class KernelObject:
    """A loaded kernel object: the table of its kernels and the calls of its C interface."""

    def __init__(self, path: Path):
        self.path = path
        self.library = library = ctypes.CDLL(str(path))
        library.torch_unroll_kernel_name.restype = ctypes.c_char_p
        library.torch_unroll_error_text.restype = ctypes.c_char_p
        pointer = ctypes.c_void_p
        library.torch_unroll_launch.argtypes = [ctypes.c_int, pointer, pointer, pointer]
        library.torch_unroll_resident.argtypes = [ctypes.c_int, pointer, pointer]
        if not hasattr(library, "torch_unroll_launch_sequence"):
            raise RuntimeError(f"{path.name} is older than its sources; {REBUILD_HINT}")
        library.torch_unroll_parameter_layout.restype = library.torch_unroll_interface_layout.restype = ctypes.c_char_p
        library.torch_unroll_encode_tensor_map.argtypes = [pointer, pointer]
        library.torch_unroll_device_digest.restype = ctypes.c_char_p
        library.torch_unroll_launch_sequence.argtypes = [pointer, ctypes.c_char_p, pointer]
        names = [library.torch_unroll_kernel_name(i).decode() for i in range(library.torch_unroll_kernel_count())]
        self.index = {name: i for i, name in enumerate(names)}
        self._check_layouts()

    def _check_layouts(self) -> None:
        """Raises RuntimeError if the layout of a struct in this object differs from that of its mirror in Python."""
        lines = self.library.torch_unroll_interface_layout().decode().splitlines()
        recorded_structs = dict(line.split(": ") for line in lines)
        differences = [layout.difference(recorded_structs.get(name, ""), name, mirror) for name, mirror in INTERFACE.items()]
        for row in table.kernels():
            mirror = table.parameters(row)
            if mirror and row.expression in self.index:
                recorded = self.library.torch_unroll_parameter_layout(self.index[row.expression]).decode()
                differences.append(layout.difference(recorded, mirror.__name__, mirror))
        for difference in filter(None, differences):
            raise RuntimeError(f"{self.path.name} takes other structs than Python passes: {difference}; {REBUILD_HINT}")

    def prepare(self, plan: LaunchPlan) -> tuple[int, CLaunchConfig]:
        """Returns a plan in the form that the C interface accepts: the kernel's number and its launch configuration.

        Raises:
            RuntimeError: this object does not contain the kernel.
        """
        if plan.kernel.expression not in self.index:
            age = "which is older than its sources or holds another op's kernels only"
            raise RuntimeError(f"{plan.kernel.expression} is not in {self.path}, {age}; {REBUILD_HINT}")
        return self.index[plan.kernel.expression], plan.config.struct()

    def check(self, status: int, plan: LaunchPlan) -> None:
        """Raises RuntimeError for a status that is not success."""
        if status:
            text = self.library.torch_unroll_error_text(status).decode()
            hint = f"; {self.path.name} holds no code for this GPU: rebuild on it" if status == _NO_KERNEL_IMAGE else ""
            raise RuntimeError(f"{plan.kernel.expression} (grid {plan.config.grid}, block {plan.config.block}): {text}{hint}")

    def tensor_map(self, spec: TensorMapSpec) -> TensorMap:
        """Encodes a tensor's description for TMA; raises RuntimeError if the driver refuses."""
        encoded = TensorMap()
        if status := self.library.torch_unroll_encode_tensor_map(ctypes.byref(spec.struct()), ctypes.byref(encoded)):
            raise RuntimeError(f"{spec}: {self.library.torch_unroll_error_text(status).decode()}")
        return encoded

    def built_from(self) -> str:
        """Returns `kernels.device_digest` of the sources that this object was built from."""
        return str(self.library.torch_unroll_device_digest().decode())

    def preload(self) -> None:
        """Loads every kernel on the current device, since loading a module fails while a CUDA graph is captured."""
        for kernel in range(len(self.index)):
            self.library.torch_unroll_preload(kernel)


@cache
def kernel_object(device_type: str) -> KernelObject:
    """Returns the kernel object for a type of device, loaded on the first call; raises OSError or RuntimeError if it does not
    load."""
    return KernelObject(library_path(device_type))


@cache
def _kernel_object_on_gpu(index: int) -> KernelObject:
    """Returns the CUDA object with its kernels loaded on a device."""
    kernels = kernel_object("cuda")
    with torch.cuda.device(index):
        kernels.preload()
    return kernels


def kernel_object_on(device: torch.device) -> KernelObject:
    """Returns the kernel object of a device, with its kernels loaded there."""
    if device.type != "cuda":
        return kernel_object(device.type)
    return _kernel_object_on_gpu(torch.cuda.current_device() if device.index is None else device.index)


def _resident(device: torch.device, plan: LaunchPlan) -> int:
    """Returns how many blocks of a plan, or clusters if it has any, the device holds at once."""
    kernels = kernel_object(device.type)
    kernel, config = kernels.prepare(plan)
    count = ctypes.c_int()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        status = kernels.library.torch_unroll_resident(kernel, ctypes.byref(config), ctypes.byref(count))
    kernels.check(status, plan)
    return count.value


class CudaLauncher:
    """The `Launcher` of the built kernel objects."""

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        kernels = kernel_object_on(device)
        if device.type != "cuda":
            kernel, config = kernels.prepare(plan)
            kernels.check(kernels.library.torch_unroll_launch(kernel, ctypes.byref(config), ctypes.byref(parameters), None), plan)
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        kernel, config = kernels.prepare(plan)
        stream = torch._C._cuda_getCurrentRawStream(index)
        previous = torch.cuda._exchange_device(index)
        try:
            status = kernels.library.torch_unroll_launch(kernel, ctypes.byref(config), ctypes.byref(parameters), stream)
        finally:
            torch.cuda._maybe_exchange_device(previous)
        kernels.check(status, plan)

    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        return kernel_object(device.type).tensor_map(spec)

    @cache  # noqa: B019 (one launcher per process)
    def properties(self, device: torch.device) -> Device:
        resident = partial(_resident, device)
        if device.type == "cuda":
            return gpu(device, resident)
        return Device(
            multiprocessors=int(kernel_object(device.type).library.torch_unroll_emulator_multiprocessors()),
            capability=(9, 0),
            shared_bytes_per_block=227 << 10,
            l2_bytes=50 << 20,
            resident=resident,
        )

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        kernel_object_on(device)


def refuses(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns None if engine `cuda` accepts the call; else the reason and, if there is one, the remedy."""
    if device.type not in ("cuda", "cpu"):
        return f"runs on CUDA tensors (and on CPU tensors through the emulator), not on {device.type}"
    if dtype not in DTYPES:
        return f"has no kernels for {dtype}"
    path = library_path(device.type)
    if not path.exists():
        if device.type == "cpu":
            return f"the tests' emulated kernels are not built ({path.name}); build them with: python kernels/build.py emulated"
        return f"{path.name} was not built; {BUILD_HINT}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has {torch.cuda.get_device_capability(device)}"
        )
    try:
        kernel_object(device.type)
    except OSError as error:
        return f"{path.name} does not load: {error}; {BUILD_HINT}"
    except RuntimeError as error:
        return str(error)
    return None


def stale(device: torch.device) -> str | None:
    """Returns a message if the kernel object for a device was built from other sources than those of this package; else None."""
    if kernel_object(device.type).built_from() == device_digest():
        return None
    return f"{library_path(device.type).name} was built from other sources than those that are here; {REBUILD_HINT}"


LAUNCHER = CudaLauncher()
ENGINE: Engine = CompiledEngine("cuda", LAUNCHER)
