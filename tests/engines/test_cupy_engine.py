"""Engine `cupy` without a GPU: the compiler, the cache and the launch structs are real, while CuPy's loading of modules and the
calls of the driver are replaced."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import torch_unroll
from torch_unroll.engines import cupy, nvrtc, refusal
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.table import Kernel, LaunchConfig, LaunchPlan, kernels

driver = pytest.importorskip("cuda.bindings.driver", reason="needs `pip install cuda-bindings`")

KERNEL = next(row for row in kernels("max_pool2d") if row.expression == "max_pool2d_indices_kernel<uint8_t>")
PLAN = LaunchPlan(KERNEL, LaunchConfig((5, 3, 2), (64, 2, 1), 1 << 16), "flat")
DEVICE = torch.device("cuda", 0)


class Struct(ctypes.Structure):
    """A substitute for a kernel's parameters."""

    _fields_ = [("value", ctypes.c_int64), ("other", ctypes.c_int32)]


class Machine:
    """A substitute for the GPU's driver. It records launches, which return the statuses in `answers` in turn, then success."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        self.modules: list[bytes] = []
        self.attributes: dict[Any, int] = {}
        self.bound: list[int] = []
        self.stream, self.capturing = 0, False

    def cuLaunchKernelEx(self, config: Any, function: Any, arguments: int, extra: int) -> tuple[Any]:
        (pointer,) = (ctypes.c_void_p * 1).from_address(arguments)
        launch = {"config": config, "function": int(function), "value": Struct.from_address(pointer).value, "extra": extra}
        self.launches.append(launch)
        return (self.answers.pop(0) if self.answers else driver.CUresult.CUDA_SUCCESS,)

    def cuFuncSetAttribute(self, function: Any, name: Any, value: int) -> tuple[Any]:
        self.attributes[name] = value
        return (driver.CUresult.CUDA_SUCCESS,)

    def cuGetErrorName(self, status: Any) -> tuple[Any, bytes]:
        return driver.CUresult.CUDA_SUCCESS, status.name.encode()

    def cuGetErrorString(self, status: Any) -> tuple[Any, bytes]:
        return driver.CUresult.CUDA_SUCCESS, b"what it means"

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function: Any, threads: int, shared_bytes: int) -> tuple[Any, int]:
        assert (threads, shared_bytes) == (128, 1 << 16)
        return driver.CUresult.CUDA_SUCCESS, 3

    def cuOccupancyMaxActiveClusters(self, function: Any, config: Any) -> tuple[Any, int]:
        assert config.numAttrs
        return driver.CUresult.CUDA_SUCCESS, 7

    def __getattr__(self, name: str) -> Any:  # structs and enumerations are the real ones
        return getattr(driver, name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Machine:
    replacement = Machine()
    monkeypatch.setenv("TORCH_UNROLL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cupy, "load_driver", lambda: replacement)
    monkeypatch.setattr(cupy, "architecture_of_device", lambda index: "sm_90a")
    monkeypatch.setattr(cupy, "gpu", lambda device, resident: Device(132, (9, 0), 227 << 10, 50 << 20, resident=resident))

    class Module:
        def load(self, code: bytes) -> None:
            replacement.modules.append(code)

        def get_function(self, symbol: str) -> SimpleNamespace:
            assert symbol.encode() in replacement.modules[-1]
            return SimpleNamespace(ptr=1000 + len(replacement.modules))

    runtime = SimpleNamespace(setDevice=replacement.bound.append)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(Module=Module, runtime=runtime)))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: replacement.stream, raising=False)
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: replacement.capturing)
    return replacement


def test_a_launch_carries_plan_struct_and_stream(machine: Machine) -> None:
    launcher = cupy.CupyLauncher()
    for machine.stream in (0, 4096, 0):
        launcher.launch(PLAN, Struct(machine.stream + 1, 2), DEVICE)
    assert [int(launch["config"].hStream) for launch in machine.launches] == [0, 4096, 0]
    assert [launch["value"] for launch in machine.launches] == [1, 4097, 1]
    config = machine.launches[0]["config"]
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (5, 3, 2)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (64, 2, 1)
    assert (config.sharedMemBytes, config.numAttrs) == (1 << 16, 0)
    assert len(machine.modules) == 1  # compiled and loaded once
    assert machine.modules[0].startswith(b"\x7fELF")
    names = driver.CUfunction_attribute
    assert machine.attributes == {
        names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: 227 << 10,
        names.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: 1,
    }


@pytest.mark.parametrize("cluster", [(1, 1, 1), (8, 2, 1)])
@pytest.mark.parametrize("cooperative", [False, True])
def test_clusters_and_cooperative_grids_are_attributes(cluster: tuple[int, int, int], cooperative: bool) -> None:
    plan = LaunchPlan(KERNEL, LaunchConfig((16, 2, 1), (32, 1, 1), 0, cluster, cooperative), "flat")
    config = cupy.launch_config(driver, plan, 0)
    attributes = {attribute.id: attribute.value for attribute in config.attrs}
    assert config.numAttrs == len(attributes) == (cluster != (1, 1, 1)) + cooperative
    names = driver.CUlaunchAttributeID
    if cluster != (1, 1, 1):
        dimension = attributes[names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION].clusterDim
        assert (dimension.x, dimension.y, dimension.z) == cluster
    if cooperative:
        assert attributes[names.CU_LAUNCH_ATTRIBUTE_COOPERATIVE].cooperative == 1


def test_a_failed_launch_raises(machine: Machine) -> None:
    machine.answers = [driver.CUresult.CUDA_ERROR_INVALID_VALUE]
    expected = (
        r"max_pool2d_indices_kernel<uint8_t> \(grid \(5, 3, 2\), block \(64, 2, 1\)\): CUDA_ERROR_INVALID_VALUE: what it means"
    )
    with pytest.raises(RuntimeError, match=expected):
        cupy.CupyLauncher().launch(PLAN, Struct(), DEVICE)


def test_a_thread_that_has_not_used_the_device_yet(machine: Machine) -> None:
    launcher = cupy.CupyLauncher()
    launcher.launch(PLAN, Struct(), DEVICE)
    machine.bound.clear()
    machine.answers = [driver.CUresult.CUDA_ERROR_INVALID_CONTEXT]
    launcher.launch(PLAN, Struct(), DEVICE)
    assert machine.bound == [0]
    assert len(machine.launches) == 3


def test_nothing_is_loaded_while_a_graph_is_captured(machine: Machine) -> None:
    launcher = cupy.CupyLauncher()
    machine.capturing = True
    with pytest.raises(RuntimeError, match=r"is not loaded yet.*call torch_unroll.warmup\(\) before"):
        launcher.launch(PLAN, Struct(), DEVICE)
    machine.capturing = False
    launcher.preload([KERNEL, Kernel("never/looked/at", "other_kernel", ("float",), "100a")], DEVICE)
    machine.capturing = True
    launcher.launch(PLAN, Struct(), DEVICE)
    assert len(machine.launches) == 1


def test_residency(machine: Machine) -> None:
    launcher = cupy.CupyLauncher()
    assert launcher.properties(DEVICE).resident(PLAN) == 3 * 132
    cluster = LaunchPlan(KERNEL, LaunchConfig((16, 1, 1), (32, 1, 1), 0, (8, 1, 1)), "flat")
    assert launcher.properties(DEVICE).resident(cluster) == 7


def test_refusals_name_the_remedy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    assert refusal("cupy", "conv2d", torch.device("cpu"), torch.float32) == "runs on CUDA tensors, not on cpu"
    assert cupy.refuses("conv2d", cuda, torch.int8) == "has no kernels for torch.int8"
    monkeypatch.setattr(cupy, "is_installed", lambda module: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")

    def refused(*, supports: int = 13000, capability: tuple[int, int] = (9, 0), compiler: tuple[int, int] = (13, 0)) -> str:
        machine.cuDriverGetVersion = lambda: (driver.CUresult.CUDA_SUCCESS, supports)  # type: ignore[attr-defined]
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(nvrtc, "version", lambda: compiler)
        return cupy.refuses("conv2d", cuda, torch.float32) or ""

    assert refused() == ""
    assert refused(compiler=(12, 9)) == ""
    assert "driver is for CUDA 12.4, NVRTC is 13.0 and compiles for newer ones: update the driver" in refused(supports=12040)
    assert refused(capability=(7, 5)) == "needs compute capability 8.0, A GPU has (7, 5)"
    assert "pip install --upgrade nvidia-cuda-nvrtc" in refused(capability=(19, 0))

    def absent() -> tuple[int, int]:
        raise RuntimeError("libnvrtc.so.13: not found")

    monkeypatch.setattr(nvrtc, "version", absent)
    reason = cupy.refuses("conv2d", cuda, torch.float32) or ""
    assert "libnvrtc.so.13: not found" in reason
    assert "pip install 'cupy-cuda13x[ctk]'" in reason
    monkeypatch.undo()
    monkeypatch.setattr(cupy, "find_spec", lambda module: None if module == "cupy" else object())
    assert (cupy.refuses("conv2d", cuda, torch.float32) or "").startswith(
        "CuPy is not installed: pip install 'cupy-cuda13x[ctk]'"
    )


def test_a_named_engine_that_cannot_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="cupy: runs on CUDA tensors, not on cpu"):
        torch_unroll.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3), engine="cupy")


def test_warmup_reaches_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Kernel] = []
    monkeypatch.setattr(cupy.ENGINE.launcher, "preload", lambda rows, device: loaded.extend(rows))
    cupy.ENGINE.warmup("rnn", torch.float32, DEVICE)
    assert {row.arguments[0] for row in loaded} == {"float", "tfloat32"}
    assert {row.source.partition("/")[0] for row in loaded} == {"rnn"}
    torch_unroll.warmup(device="cpu", engine="torch")  # does nothing
    with pytest.raises(ValueError, match="op: expected one of conv2d, max_pool2d, rnn, got 'softmax'"):
        torch_unroll.warmup("softmax")
    with pytest.raises(RuntimeError, match="cupy: runs on CUDA tensors"):
        torch_unroll.warmup("conv2d", device="cpu", engine="cupy")
