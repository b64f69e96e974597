"""Finds out which engine serves a call if nvcc is missing, and what would make the others run.

Installing with `pip install .` succeeds without nvcc, but leaves the compiled kernels out. If CuPy is installed, engine `cupy`
then compiles the same sources when a kernel is first called. Engine `numba` compiles kernels written in Python.
Prints every engine, with the reason if it does not run here; then, for each engine, what a call that names it does; and finally
the report of `python -m torch_unroll doctor`, which ends with advice.
Needs nothing.
"""

import torch

import torch_unroll as tu
from torch_unroll.tools import doctor


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engines = tu.available_engines(device)
    print(f"engines for tensors on {device}:")
    print(engines)

    # A named engine never falls back. It raises an error that says what is missing.
    x, weight = torch.randn(1, 3, 8, 8, device=device), torch.randn(4, 3, 3, 3, device=device)
    for name, reason in engines.reasons.items():
        try:
            tu.conv2d(x, weight, engine=name)
            print(f"engine {name} computed a convolution")
        except RuntimeError as error:
            assert reason is not None
            print(f"engine {name} raised: {error}")

    print("\npython -m torch_unroll doctor:")
    doctor.main([])


if __name__ == "__main__":
    main()
