"""The reader of ptxas' output finds registers, stack, spills, remarks and warnings."""

from __future__ import annotations

from tests.compile.remarks import Compiled, compiled, remarks

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z11fold_kernelIfiEv14FoldParametersIT_E' for 'sm_80'
ptxas info    : Function properties for _Z11fold_kernelIfiEv14FoldParametersIT_E
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 520 bytes cmem[0]
ptxas info    : Compile time = 85.637 ms
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient registers
ptxas info    : Compiling entry function '_Z11fold_kernelIdiEv14FoldParametersIT_E' for 'sm_90a'
ptxas info    : Function properties for _Z11fold_kernelIdiEv14FoldParametersIT_E
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size
conv2d/fold.cuh(12): warning #177-D: variable "left" was declared but never referenced
"""


def test_registers_stack_and_spills_are_read() -> None:
    first, second = compiled(LOG)
    assert first == Compiled("_Z11fold_kernelIfiEv14FoldParametersIT_E", "sm_80", 0, 0, 40)
    assert second == Compiled("_Z11fold_kernelIdiEv14FoldParametersIT_E", "sm_90a", 8, 16, 255)
    assert first.template == second.template == "fold_kernel"


def test_remarks_and_warnings_are_read() -> None:
    serialised, unused = remarks(LOG)
    assert "C7510" in serialised
    assert "#177-D" in unused
