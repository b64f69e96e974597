"""nvcc compiles every row of the kernel table, for each of TARGETS that it runs on, without spills, local memory or warnings."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.compile.remarks import Compiled, compiled, demangled, remarks
from torch_unroll.engines.nvrtc import runs_on
from torch_unroll.kernels import build
from torch_unroll.kernels.table import OPS, kernels

#: TORCH_CUDA_ARCH_LIST for this check. .ci/run builds the library for the same targets, so that nothing is compiled twice.
ARCHITECTURES = "8.0+PTX 9.0a 10.0"
TARGETS = ("sm_80", "sm_90a", "sm_100")

pytestmark = pytest.mark.compile


@pytest.fixture(scope="session")
def logs() -> dict[str, str]:
    """Compiles the whole table and returns nvcc's output for each source file."""
    if lack := build.cuda_lack():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs nvcc: {lack}")
        pytest.skip(lack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
        directory = build.BUILD / build.directory_name("cuda")
        build.build("cuda", kernels(), directory / "check.so", directory=directory)
    instances = {path.stem for path in (directory / "generated").glob("*.cu")}
    return {path.name: path.read_text() for path in directory.glob("*.log") if path.name.removesuffix(".o.log") in instances}


@pytest.fixture(scope="session")
def entries(logs: dict[str, str]) -> list[Compiled]:
    return [entry for log in logs.values() for entry in compiled(log)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_every_row_is_compiled(entries: list[Compiled], op: str, target: str) -> None:
    rows = Counter(row.name for row in kernels(op) if runs_on(row, target))
    assert rows, f"{op} has no kernel for {target}"
    reports = Counter(entry.template for entry in entries if entry.target == target)
    assert {name: reports[name] for name in rows} == rows


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_no_kernel_spills_or_uses_local_memory(entries: list[Compiled], op: str, target: str) -> None:
    names = {row.name for row in kernels(op)}
    mine = [entry for entry in entries if entry.target == target and entry.template in names]
    spilling = [entry for entry in mine if entry.stack_bytes or entry.spill_bytes]
    report = [
        f"{name}: {entry.stack_bytes} bytes of stack, {entry.spill_bytes} spilled, {entry.registers} registers"
        for entry, name in zip(spilling, demangled(entry.symbol for entry in spilling), strict=True)
    ]
    assert not report, "\n".join(report)


def test_the_compilers_have_nothing_to_remark(logs: dict[str, str]) -> None:
    lines = [f"{Path(name).stem}: {remark}" for name, log in logs.items() for remark in remarks(log)]
    assert not lines, "\n".join(lines)
