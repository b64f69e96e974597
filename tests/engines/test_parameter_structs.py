"""The structs that Python passes to kernels have the layout of their declarations in C++: if only one side changes, kernels do
not compile, and an object that was compiled before does not load."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_unroll.engines import cuda, nvrtc
from torch_unroll.kernels import SOURCES, build, interface, layout, table
from torch_unroll.kernels.table import OPS, Kernel, kernels, parameters

Fields = list[tuple[Any, ...]]

OBJECT = cuda.library_path("cpu")
built = pytest.mark.skipif(not OBJECT.exists(), reason="the emulated kernels are not built: python kernels/build.py emulated")
FIRST = {mirror: row for row in reversed(kernels()) if (mirror := parameters(row))}
MIRRORS = {f"{mirror.__name__}-{row.name}": mirror for mirror, row in FIRST.items()}
MIRRORS |= interface.INTERFACE


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_has_a_mirror_and_every_mirror_a_kernel(op: str) -> None:
    assert {row.name for row in kernels(op)} == set(_table_of(op))


@pytest.mark.parametrize("name", ["im2col_kernel", "max_pool2d_gather_kernel", "rnn_step_kernel", "rnn_cluster_kernel"])
def test_a_kernel_without_a_mirror_is_neither_compiled_nor_loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in kernels() if row.name == name)
    op = row.source.partition("/")[0]
    monkeypatch.delitem(_table_of(op), name)
    message = f"PARAMETERS of cuda/{op}/variants.py: expected the mirror of what {name} takes, got none"
    with pytest.raises(LookupError, match=re.escape(message)):
        table.instance_source([row])
    with pytest.raises(LookupError, match=re.escape(message)):
        nvrtc.Recipe(row, "sm_90a").compile()
    if OBJECT.exists():
        with pytest.raises(LookupError, match=re.escape(message)):
            cuda.KernelObject(OBJECT)


def _table_of(op: str) -> dict[str, type[ctypes.Structure]]:
    return import_module(f"torch_unroll.kernels.cuda.{op}.variants").PARAMETERS


# ---- a mirror that has changed since the object was built -------------------------------------------------------------------


def _dropped(fields: Fields, i: int) -> Fields:
    return fields[:i] + fields[i + 1 :]


def _swapped(fields: Fields, i: int) -> Fields:
    """Swaps a field with the next one, and the last with the first."""
    fields, other = list(fields), (i + 1) % len(fields)
    fields[i], fields[other] = fields[other], fields[i]
    return fields


def _widened(fields: Fields, i: int) -> Fields:
    return [*fields[:i], (fields[i][0], fields[i][1] * 2), *fields[i + 1 :]]


def _padded(fields: Fields, i: int) -> Fields:
    return [*fields[:i], ("_padding_before", ctypes.c_int64), *fields[i:]]


def _renamed(fields: Fields, i: int) -> Fields:
    return [*fields[:i], (f"{fields[i][0]}_", fields[i][1]), *fields[i + 1 :]]


def _inserted(fields: Fields, i: int) -> Fields:
    return [*fields[:i], ("inserted", ctypes.c_uint8), *fields[i:]]


CHANGES = (_dropped, _swapped, _widened, _padded, _renamed, _inserted)


def _changed(mirror: type[ctypes.Structure], change: Any, i: int) -> type[ctypes.Structure]:
    named = [field for field in mirror._fields_ if not field[0].startswith("_")]
    rest = [field for field in mirror._fields_ if field[0].startswith("_")]
    return type(mirror.__name__, (ctypes.Structure,), {"_fields_": [*change(named, i), *rest]})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mirror", MIRRORS.values(), ids=MIRRORS)
def test_a_changed_mirror_differs_wherever_the_change_is(mirror: type[ctypes.Structure], change: Any) -> None:
    name = mirror.__name__
    recorded = layout.record(name, mirror)
    assert layout.difference(recorded, name, mirror) is None
    for i in range(sum(not field[0].startswith("_") for field in mirror._fields_)):
        changed = _changed(mirror, change, i)
        for difference in (
            layout.difference(recorded, name, changed),
            layout.difference(layout.record(name, changed), name, mirror),
        ):
            assert difference is not None, f"{change.__name__} at {i}"
            assert re.fullmatch(rf"{name}(\.\S+)? is .+ in the object, and .+ in Python", difference)


@built
def test_the_object_takes_the_structs_that_python_passes() -> None:
    kernels_of_object = cuda.KernelObject(OBJECT)
    assert set(kernels_of_object.index) == {row.expression for row in kernels()}


@dataclass(frozen=True)
class Drift:
    """A change to a mirror at one of its fields, and the difference that must be reported first when an older object is loaded:
    the field's name, and its (offset, size) in the object and in Python, or None where it is missing."""

    kernel: str
    change: Any
    field: str
    name: str
    theirs: tuple[int, int] | None
    ours: tuple[int, int] | None

    @property
    def message(self) -> str:
        theirs, ours = (
            f"at offset {field[0]} with {field[1]} bytes" if field else "missing" for field in (self.theirs, self.ours)
        )
        return f"{self.name} is {theirs} in the object, and {ours} in Python"


DRIFTS = (
    Drift("rnn_step_kernel", _dropped, "h0", "RnnParameters.h0", (8, 8), None),
    Drift("rnn_step_kernel", _dropped, "cell", "RnnParameters.cell", (228, 4), None),
    Drift("rnn_cell_forward_kernel", _swapped, "w_ih", "RnnCellParameters.w_ih", (16, 8), (24, 8)),
    Drift("im2col_kernel", _swapped, "x", "Im2colParameters.x", (0, 8), (8, 8)),
    Drift("conv2d_wgrad_simt_kernel", _widened, "splits", "Conv2dWgradParameters.splits", (264, 4), (264, 8)),
    Drift("conv2d_dgrad_wgmma_kernel", _padded, "sums", "Conv2dWgmmaParameters.sums", (3208, 8), (3216, 8)),
    Drift("max_pool2d_gather_kernel", _padded, "dense", "MaxPool2dGatherParameters.dense", (144, 24), (152, 24)),
    Drift("max_pool2d_indices_kernel", _inserted, "indices", "MaxPool2dIndicesParameters.indices", (8, 8), (16, 8)),
    Drift("pack_channels_kernel", _renamed, "padded", "PackChannelsParameters.padded", (52, 4), None),
)
by_drift = pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: f"{drift.kernel}-{drift.change.__name__}-{drift.field}")


def _of_field(mirror: type[ctypes.Structure], drift: Drift) -> type[ctypes.Structure]:
    names = [field[0] for field in mirror._fields_]
    return _changed(mirror, drift.change, names.index(drift.field))


@built
@by_drift
def test_an_object_of_another_layout_is_not_loaded(drift: Drift, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in kernels() if row.name == drift.kernel)
    mirrors = _table_of(row.source.partition("/")[0])
    monkeypatch.setitem(mirrors, drift.kernel, _of_field(mirrors[drift.kernel], drift))
    _assert_not_loaded(drift.message)
    monkeypatch.undo()
    cuda.KernelObject(OBJECT)


INTERFACE_DRIFTS = (
    Drift("LaunchConfig", _dropped, "cluster", "LaunchConfig.cluster", (24, 12), None),
    Drift("LaunchConfig", _swapped, "shared_bytes", "LaunchConfig.shared_bytes", (36, 4), (40, 4)),
    Drift("LaunchConfig", _inserted, "grid", "LaunchConfig.grid", (0, 12), (4, 12)),
    Drift("TensorMapSpec", _widened, "lower", "TensorMapSpec.lower", (96, 8), (96, 16)),
    Drift("TensorMapSpec", _padded, "im2col", "TensorMapSpec.im2col", (128, 4), (136, 4)),
)


@built
@pytest.mark.parametrize("drift", INTERFACE_DRIFTS, ids=lambda drift: f"{drift.kernel}-{drift.change.__name__}-{drift.field}")
def test_an_object_of_another_interface_is_not_loaded(drift: Drift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interface.INTERFACE, drift.kernel, _of_field(table.INTERFACE[drift.kernel], drift))
    _assert_not_loaded(drift.message)


def _assert_not_loaded(message: str) -> None:
    expected = re.escape(f"{OBJECT.name} takes other structs than Python passes: {message}; build it again: pip install")
    with pytest.raises(RuntimeError, match=expected):
        cuda.KernelObject(OBJECT)
    cuda.kernel_object.cache_clear()
    try:
        assert re.search(expected, cuda.refuses("rnn", torch.device("cpu"), torch.float32) or "")
    finally:
        cuda.kernel_object.cache_clear()


# ---- declarations that have changed, by every compiler -----------------------------------------------------------------------


@dataclass(frozen=True)
class Plant:
    """A change to a declaration in C++, and what compilers must report about it."""

    name: str
    kernel: str  # the start of the name of a kernel that takes the changed struct
    source: str
    old: str
    new: str
    report: str


PLANTS = (
    Plant("a field too few", "rnn_step", "rnn/parameters.cuh", "  T* dh0;   ", "  // ", "dh0"),
    Plant(
        "a field too many",
        "rnn_cell_forward",
        "rnn/parameters.cuh",
        "  T* dx;  ",
        "  T* more;\n  T* dx;  ",
        "RnnCellParameters.dx is at offset 72 with 8 bytes in Python",
    ),
    Plant(
        "a field in padding",
        "max_pool2d_gather",
        "max_pool2d/parameters.cuh",
        "rows_per_block;  //",
        "rows_per_block, in_padding;  //",
        "rows_per_block] = whole.dense",
    ),
    Plant(
        "a field of an empty struct",
        "conv2d_dgrad_simt_kernel",
        "conv2d/epilogue.cuh",
        "struct NoEpilogue {",
        "struct NoEpilogue {\n  char more;",
        "Conv2dDgradParameters.epilogue has no members in Python",
    ),
    Plant(
        "pointers swapped",
        "im2col_kernel",
        "conv2d/parameters.cuh",
        "  const T* x;  // (N, C, H, W)\n  T* columns;",
        "  T* columns;\n  const T* x;",
        "Im2colParameters.x is at offset 0 with 8 bytes in Python",
    ),
    Plant(
        "inner fields swapped",
        "conv2d_fprop_simt_kernel",
        "shapes.h",
        "N, C, H, W, K,",
        "N, C, W, H, K,",
        "Conv2dFpropParameters.shape.H is at offset 32 with 4 bytes in Python",
    ),
    Plant(
        "fields in an array swapped",
        "conv2d_dgrad_wgmma",
        "conv2d/parameters.cuh",
        "pixels, start, up;",
        "start, pixels, up;",
        "images[0].vertical.pixels is at offset 128 with 4 bytes in Python",
    ),
    Plant(
        "another width",
        "conv2d_sum_splits",
        "conv2d/parameters.cuh",
        "int32_t splits, channels_inner;",
        "int64_t splits, channels_inner;",
        "Conv2dSumSplitsParameters.splits is at offset 192 with 4 bytes in Python",
    ),
    Plant(
        "another length",
        "rnn_step",
        "shapes.h",
        "int32_t T, N, I, H;",
        "int32_t T, N, I[2], H;",
        "RnnParameters.shape.I is at offset 220 with 4 bytes in Python",
    ),
    Plant(
        "padding moved",
        "pack_channels",
        "conv2d/parameters.cuh",
        "  int32_t H, W, groups",
        "  alignas(16) int32_t H, W, groups",
        "PackChannelsParameters is at offset 0 with 80 bytes in Python",
    ),
    Plant(
        "padding in front",
        "rnn_cell_backward",
        "rnn/parameters.cuh",
        "  int32_t aligned;  //",
        "  alignas(8) int32_t aligned;\n  alignas(16) int32_t more;  //",
        "RnnCellParameters.cell.nonlinearity is at offset 156 with 4 bytes in Python",
    ),
)
by_plant = pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)


def _row(plant: Plant) -> Kernel:
    return next(row for row in kernels() if row.name.startswith(plant.kernel))


def _planted(plant: Plant) -> str:
    text = (SOURCES / plant.source).read_text()
    assert text.count(plant.old) == 1, "the source has changed: adapt `old` to it"
    return text.replace(plant.old, plant.new)


def _copy(plant: Plant, folder: Path) -> Path:
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / plant.source).write_text(_planted(plant))
    return folder


def _host_compiler_report(source: str, directory: Path, folders: Iterable[Path]) -> str:
    """Returns the errors of the compiler that builds the emulated object; empty if it compiles the source."""
    path = directory / "checked.cpp"
    path.write_text(source)
    command = [build.find_host_compiler(), "-std=c++20", "-fsyntax-only", "-include", "cuda_runtime.h", str(path)]
    command += [f"-I{folder}" for folder in (build.EMULATOR / "include", *folders)]
    return subprocess.run(command, capture_output=True, text=True).stderr


@by_plant
def test_the_host_compiler_refuses_a_changed_declaration(plant: Plant, tmp_path: Path) -> None:
    source = table.checked_source([_row(plant)])
    assert not _host_compiler_report(source, tmp_path, [SOURCES])
    assert plant.report in _host_compiler_report(source, tmp_path, [_copy(plant, tmp_path / "cuda")])


@by_plant
def test_nvrtc_refuses_a_changed_declaration(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")
    sources = nvrtc.sources
    planted = {plant.source: _planted(plant).encode()}
    monkeypatch.setattr(nvrtc, "sources", lambda name: {file: planted.get(file, text) for file, text in sources(name).items()})
    with pytest.raises(nvrtc.CompileError, match=re.escape(plant.report)):
        nvrtc.Recipe(_row(plant), "sm_90a").compile()


@pytest.mark.compile
@by_plant
def test_nvcc_refuses_a_changed_declaration(plant: Plant, tmp_path: Path) -> None:
    if lack := build.cuda_lack():
        pytest.skip(lack)
    (tmp_path / "checked.cu").write_text(table.checked_source([_row(plant)]))
    for folder, takes in ((SOURCES, True), (_copy(plant, tmp_path / "cuda"), False)):
        command = [build.find_nvcc(), "-std=c++20", "-arch=sm_90a", "-cuda", "checked.cu", "-o", "checked.ii", f"-I{folder}"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (ran.returncode == 0) == takes, ran.stderr
        assert takes or plant.report in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("old", "new", "report"),
    [
        ("shared_bytes, cooperative;", "cooperative, shared_bytes;", "LaunchConfig.shared_bytes is at offset 36 with 4 bytes"),
        ("cluster[3], ", "", "cluster"),
        ("uint64_t extent[4]", "uint32_t extent[4]", "TensorMapSpec.extent is at offset 8 with 32 bytes in Python"),
        ("swizzle, im2col;", "swizzle, im2col, in_padding;", "TensorMapSpec"),
        ("uint32_t channels,", "alignas(16) uint32_t channels,", "TensorMapSpec.type is at offset 120 with 4 bytes in Python"),
    ],
)
def test_the_host_compiler_refuses_a_changed_interface(old: str, new: str, report: str, tmp_path: Path) -> None:
    header = (SOURCES / "platform/interface.h").read_text()
    assert header.count(old) == 1
    changed = tmp_path / "changed"
    (changed / "platform").mkdir(parents=True)
    (changed / "platform/interface.h").write_text(header.replace(old, new))
    assert not _host_compiler_report(table.interface_source(), tmp_path, [SOURCES])
    assert report in _host_compiler_report(table.interface_source(), tmp_path, [changed, SOURCES])


# ---- engines that compile, and keep compiled kernels ------------------------------------------------------------------------


@by_drift
def test_kernels_compiled_for_another_mirror_are_not_used(drift: Drift, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs `pip install cuda-bindings nvidia-cuda-nvrtc`")
    row = next(row for row in kernels() if row.name == drift.kernel)
    before = nvrtc.Recipe(row, "sm_90a").digest
    mirrors = _table_of(row.source.partition("/")[0])
    mirror = mirrors[drift.kernel]
    monkeypatch.setitem(mirrors, drift.kernel, _of_field(mirror, drift))
    assert nvrtc.Recipe(row, "sm_90a").digest != before
    with pytest.raises(nvrtc.CompileError, match=mirror.__name__):
        nvrtc.Recipe(row, "sm_90a").compile()


@pytest.mark.compile
def test_the_cuda_object_records_its_structs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lack := build.cuda_lack():
        pytest.skip(lack)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    rows = [next(row for row in kernels() if row.name == name) for name in ("max_pool2d_indices_kernel", "im2col_kernel")]
    path = build.build("cuda", rows, tmp_path / "kernels.so", directory=tmp_path)
    assert set(cuda.KernelObject(path).index) == {row.expression for row in rows}
    for drift in DRIFTS:
        mirrors = _table_of(next(row for row in kernels() if row.name == drift.kernel).source.partition("/")[0])
        monkeypatch.setitem(mirrors, drift.kernel, _of_field(mirrors[drift.kernel], drift))
        if drift.kernel in {row.name for row in rows}:
            with pytest.raises(RuntimeError, match=re.escape(drift.message)):
                cuda.KernelObject(path)
        monkeypatch.undo()
