"""In the PTX of max pooling's variants `channels` and `staged`, loads and stores of global memory have the widths and numbers
that kernels/cuda/max_pool2d/README.md promises: 16 bytes where possible, and each cell of a strip once."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter

import pytest

from torch_unroll.kernels import SOURCES, build
from torch_unroll.kernels.cuda.max_pool2d.problem import OFFSET_BYTES, STRIP
from torch_unroll.kernels.dtypes import CPP_TYPES, ITEM_BYTES
from torch_unroll.kernels.table import Kernel, instance_source, kernels

pytestmark = pytest.mark.compile

ITEM = {cpp: ITEM_BYTES[name] for name, cpp in CPP_TYPES.items()}
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.nc)?(?:\.v(\d))?\.[busf](\d+)\b")
_COPY = re.compile(r"\bcp\.async\.cg\.shared\.global \[[^\]]*\], \[[^\]]*\], 16\b")


def _rows(*parts: str) -> list[Kernel]:
    return [row for row in kernels("max_pool2d") if all(part in row.expression for part in parts)]


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name expression -> PTX, for the kernels of the variants channels and staged, which move 16 bytes at a time."""
    if lack := build.cuda_lack():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI requires nvcc: {lack}")
        pytest.skip(lack)
    bodies = {}
    folder = tmp_path_factory.mktemp("ptx")
    for variant in ("channels", "staged"):
        rows = _rows(f"_{variant}_kernel")
        source, output = folder / f"{variant}.cu", folder / f"{variant}.ptx"
        source.write_text(instance_source(rows))
        command = [build.find_nvcc(), "-std=c++20", f"-I{SOURCES}", "-arch=compute_80", "-ptx", str(source), "-o", str(output)]
        subprocess.run(command, check=True)
        entries = re.split(r"\.entry ", output.read_text())[1:]
        assert len(entries) == len(rows)
        for row in rows:
            bodies[row.expression] = next(entry for entry in entries if _symbol_part(row) in entry[: entry.index("(")])
    return bodies


def _symbol_part(row: Kernel) -> str:
    """The part of a row's mangled symbol that distinguishes the row from all others."""
    types = {"half": "4half", "bfloat16": "8bfloat16", "float": "f", "double": "d", "uint8_t": "h", "int16_t": "s"}
    item, offset, window = row.arguments
    extents = "".join(f"Li{extent}E" for extent in re.findall(r"\d", window))
    return f"{row.name}I{types[item]}{types[offset]}" + (f"11FixedWindowI{extents}E" if extents else "9AnyWindow")


def _accesses(body: str) -> tuple[Counter[int], Counter[int]]:
    """Global loads and stores, counted by their bytes."""
    loads, stores = Counter[int](), Counter[int]()
    for kind, vector, bits in _ACCESS.findall(body):
        (loads if kind == "ld" else stores)[int(vector or 1) * int(bits) // 8] += 1
    return loads, stores


@pytest.mark.parametrize("row", _rows("channels", "FixedWindow"), ids=lambda row: row.expression)
def test_channels_move_16_bytes_and_each_cell_of_a_strip_once(ptx: dict[str, str], row: Kernel) -> None:
    loads, stores = _accesses(ptx[row.expression])
    R, S, stride = map(int, re.findall(r"\d", row.arguments[2]))
    offset_bytes = 16 // ITEM[row.arguments[0]]
    if "forward" in row.name:
        expected_loads = Counter({16: ((STRIP - 1) * stride + R) * S, 8: 1})  # the 8 bytes are an element of `lengths`
        expected_stores = Counter({16: STRIP, offset_bytes: STRIP})
    else:
        windows = (STRIP + (R - 1) // stride) * ((S - 1) // stride + 1)
        expected_loads = Counter({16: windows, offset_bytes: windows})
        expected_stores = Counter({16: STRIP * stride * stride})
    assert (loads, stores) == (expected_loads, expected_stores)


@pytest.mark.parametrize("row", _rows("channels", "AnyWindow"), ids=lambda row: row.expression)
def test_channels_of_any_window_move_16_bytes(ptx: dict[str, str], row: Kernel) -> None:
    loads, stores = _accesses(ptx[row.expression])
    offset_bytes = 16 // ITEM[row.arguments[0]] * OFFSET_BYTES[row.arguments[1]]
    length = {8} if "forward" in row.name else set()
    assert set(loads) == {16} | length | ({offset_bytes} if "backward" in row.name else set())
    assert set(stores) == {16} | ({offset_bytes} if "forward" in row.name else set())


@pytest.mark.parametrize("row", _rows("staged"), ids=lambda row: row.expression)
def test_staged_blocks_move_16_bytes_but_for_a_head_and_a_tail(ptx: dict[str, str], row: Kernel) -> None:
    body = ptx[row.expression]
    loads, stores = _accesses(body)
    item, offset = ITEM[row.arguments[0]], OFFSET_BYTES[row.arguments[1]]
    inputs, outputs = ([item], [item, offset]) if "forward" in row.name else ([item, offset], [item])
    assert len(_COPY.findall(body)) >= len(inputs)
    assert loads == sum((Counter({size: 2}) for size in inputs), Counter())
    assert stores.pop(16) >= len(outputs)
    assert stores == sum((Counter({size: 2}) for size in outputs), Counter())
