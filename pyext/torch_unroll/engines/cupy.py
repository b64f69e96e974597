"""Engine `cupy`: the sources of kernels/cuda, compiled by NVRTC on first use and loaded by CuPy; pip installs both.

It launches the plans of engine `cuda` through the driver's cuLaunchKernelEx, which accepts a cluster shape.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch

from torch_unroll.engines import nvrtc, nvrtc_cache
from torch_unroll.engines.compiled import gpu
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.interface import DTYPES, Engine
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import Kernel, LaunchPlan
from torch_unroll.kernels.tensor_map import TYPES, TensorMap, TensorMapSpec

_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not used the device before
_MOST_PREPARED = 4096


class CupyLauncher:
    """The `Launcher` of kernels that are compiled at run time."""

    def __init__(self) -> None:
        #: kernel, device index -> cupy.cuda.Function, which keeps its module alive
        self._functions: dict[tuple[Kernel, int], Any] = {}
        #: plan, device index, stream -> cuLaunchKernelEx, its config, and the function
        self._prepared: dict[tuple[LaunchPlan, int, int], tuple[Any, Any, Any]] = {}
        self._loading = threading.Lock()

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        stream = torch._C._cuda_getCurrentRawStream(index)
        launch, config, function = self._prepared.get((plan, index, stream)) or self._prepare(plan, index, stream)
        pointer = ctypes.c_void_p(ctypes.addressof(parameters))
        previous = torch.cuda._exchange_device(index)
        try:
            (status,) = launch(config, function, ctypes.addressof(pointer), 0)
            if status == _INVALID_CONTEXT:
                _make_current(index)
                (status,) = launch(config, function, ctypes.addressof(pointer), 0)
        finally:
            torch.cuda._maybe_exchange_device(previous)
        _check(status, plan)

    def _resident(self, device: torch.device, plan: LaunchPlan) -> int:
        driver = load_driver()
        index = torch.cuda.current_device() if device.index is None else device.index
        _, config, function = self._prepare(plan, index, 0)
        with torch.cuda.device(index):
            if plan.config.cluster != (1, 1, 1):
                status, clusters = driver.cuOccupancyMaxActiveClusters(function, config)
                _check(status, plan)
                return int(clusters)
            x, y, z = plan.config.block
            status, blocks = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, x * y * z, plan.config.shared_bytes)
            _check(status, plan)
        return int(blocks) * self.properties(torch.device("cuda", index)).multiprocessors

    @lru_cache(maxsize=4096)  # noqa: B019 (one launcher per process)
    def tensor_map(self, spec: TensorMapSpec, device: torch.device) -> TensorMap:
        return encode_tensor_map(load_driver(), spec)

    @cache  # noqa: B019 (one launcher per process)
    def properties(self, device: torch.device) -> Device:
        return gpu(device, partial(self._resident, device))

    def preload(self, rows: Iterable[Kernel], device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        for row in rows:
            if nvrtc.runs_on(row, architecture_of_device(index)):
                self._function(row, index)

    def _prepare(self, plan: LaunchPlan, index: int, stream: int) -> tuple[Any, Any, Any]:
        """Converts a plan into what a launch passes to the driver, and keeps the result. Each stream has a result of its own,
        because a config holds its stream and several threads may launch at once."""
        driver = load_driver()
        function = driver.CUfunction(self._function(plan.kernel, index).ptr)
        config = launch_config(driver, plan, stream)
        if len(self._prepared) >= _MOST_PREPARED:  # plans are made without end in a program whose shapes change
            self._prepared.clear()
        prepared = self._prepared[plan, index, stream] = (driver.cuLaunchKernelEx, config, function)
        return prepared

    def _function(self, kernel: Kernel, index: int) -> Any:
        """Returns a kernel on a device, loaded from the disk cache or else compiled.

        Raises:
            RuntimeError: the kernel is not loaded yet, and a CUDA graph is being captured.
        """
        function = self._functions.get((kernel, index))
        if function is None:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{kernel.expression} is not loaded yet, and cannot be while a CUDA graph is captured: call "
                    "torch_unroll.warmup() before"
                )
            with self._loading:
                function = self._functions.get((kernel, index)) or self._load(kernel, index)
                self._functions[kernel, index] = function
        return function

    def _load(self, kernel: Kernel, index: int) -> Any:
        import cupy

        binary = nvrtc_cache.fetch(nvrtc.Recipe(kernel, architecture_of_device(index)))
        with torch.cuda.device(index):
            _make_current(index)
            module = cupy.cuda.Module()
            module.load(binary.code)
            function = module.get_function(binary.symbol)
            allow(load_driver(), function.ptr, self.properties(torch.device("cuda", index)))
        return function


def launch_config(driver: Any, plan: LaunchPlan, stream: int) -> Any:
    """Returns the `driver.CUlaunchConfig` of a plan on a stream."""
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = plan.config.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = plan.config.block
    config.sharedMemBytes = plan.config.shared_bytes
    config.hStream = driver.CUstream(stream)
    attributes = []
    if plan.config.cluster != (1, 1, 1):
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster = attribute.value.clusterDim
        cluster.x, cluster.y, cluster.z = plan.config.cluster
        attributes.append(attribute)
    if plan.config.cooperative:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        attributes.append(attribute)
    config.attrs, config.numAttrs = attributes, len(attributes)
    return config


def encode_tensor_map(driver: Any, spec: TensorMapSpec) -> TensorMap:
    """Encodes a tensor's description for TMA, as `encode_tensor_map` of platform/encode.h does."""
    types, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    dtype = (
        types.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        types.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        types.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
    )[TYPES.index(spec.dtype)]
    shared = (
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{spec.swizzle}B"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    tensor = (dtype, 4, spec.address, _numbers(driver.cuuint64_t, spec.extent), _numbers(driver.cuuint64_t, spec.stride))
    element_stride = _numbers(driver.cuuint32_t, spec.element_stride)
    if spec.im2col:
        corners = (list(spec.lower), list(spec.upper))
        status, encoded = driver.cuTensorMapEncodeIm2col(*tensor, *corners, spec.channels, spec.pixels, element_stride, *shared)
    else:
        status, encoded = driver.cuTensorMapEncodeTiled(*tensor, _numbers(driver.cuuint32_t, spec.box), element_stride, *shared)
    if status:
        raise RuntimeError(f"{spec}: {_text(status)}")
    return TensorMap.from_buffer_copy(ctypes.string_at(encoded.getPtr(), ctypes.sizeof(TensorMap)))


def _numbers(type_: Any, values: Iterable[int]) -> list[Any]:
    return [type_(value) for value in values]


def allow(driver: Any, function: int, properties: Device) -> None:
    """Allows a kernel all the shared memory that a block can have and, from compute capability 9.0, clusters of more than 8
    blocks; plans may ask for both."""
    names = driver.CUfunction_attribute
    wanted = {names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: properties.shared_bytes_per_block}
    if properties.capability >= (9, 0):
        wanted[names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED] = 1
    for name, value in wanted.items():
        (status,) = driver.cuFuncSetAttribute(driver.CUfunction(function), name, value)
        if status:
            raise RuntimeError(f"cuFuncSetAttribute({name.name}, {value}): {_text(status)}")


def _make_current(index: int) -> None:
    """Makes the device's context current in this thread. torch's guard skips this step if it believes the device to be
    current."""
    import cupy

    cupy.cuda.runtime.setDevice(index)


def _check(status: Any, plan: LaunchPlan) -> None:
    """Raises RuntimeError for a status that is not success."""
    if status:
        raise RuntimeError(f"{plan.kernel.expression} (grid {plan.config.grid}, block {plan.config.block}): {_text(status)}")


def _text(status: Any) -> str:
    driver = load_driver()
    return ": ".join(get(status)[1].decode() for get in (driver.cuGetErrorName, driver.cuGetErrorString))


@cache
def load_driver() -> Any:
    """Returns the bindings of the CUDA driver."""
    from cuda.bindings import driver

    return driver


@cache
def architecture_of_device(index: int) -> str:
    """Returns the architecture for which kernels of a CUDA device are compiled."""
    return nvrtc.architecture_of(torch.cuda.get_device_capability(index))


def is_installed(module: str) -> bool:
    """Returns whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _missing_requirement(device: torch.device) -> str | None:
    """Returns what the machine lacks to run on a GPU and, if there is one, the remedy; None if it lacks nothing."""
    release = (torch.version.cuda or "13").partition(".")[0]
    install = f"pip install 'cupy-cuda{release}x[ctk]' 'cuda-bindings=={release}.*'"
    for package, module in (("CuPy", "cupy"), ("cuda-bindings", "cuda.bindings")):
        if not is_installed(module):
            return f"{package} is not installed: {install}"
    try:
        compiler, known = nvrtc.version(), nvrtc.architectures()
    except Exception as error:  # bindings raise errors of their own where the library is missing
        return f"NVRTC does not load ({error}): {install}"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"CuPy does not load ({error}): {install}"
    status, supported = load_driver().cuDriverGetVersion()
    if status or supported // 1000 < compiler[0]:
        state = (
            f"is for CUDA {supported // 1000}.{supported % 1000 // 10}" if not status else f"does not answer ({_text(status)})"
        )
        return (
            f"the GPU's driver {state}, NVRTC is {compiler[0]}.{compiler[1]} and compiles for newer ones: update the driver, or "
            f"install CuPy for its CUDA: pip install 'cupy-cuda12x[ctk]' 'cuda-bindings==12.*'"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has {capability}"
    if capability[0] * 10 + capability[1] not in known:
        return (
            f"NVRTC {compiler[0]}.{compiler[1]} does not compile for {torch.cuda.get_device_name(device)} {capability}: "
            f"pip install --upgrade nvidia-cuda-nvrtc"
        )
    return None


def refuses(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns None if engine `cupy` accepts the call; else the reason and, if there is one, the remedy."""
    if device.type != "cuda":
        return f"runs on CUDA tensors, not on {device.type}"
    if dtype not in DTYPES:
        return f"has no kernels for {dtype}"
    return _missing_requirement(device)


LAUNCHER = CupyLauncher()
ENGINE: Engine = CompiledEngine("cupy", LAUNCHER)
