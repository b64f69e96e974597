"""`python -m torch_unroll support`: which engine computes which op in which dtype, read off the code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch_unroll.engines.interface import DTYPES
from torch_unroll.kernels.table import kernels_of

#: Function -> the op whose kernels it runs.
FUNCTIONS = {
    "conv2d": "conv2d",
    "conv_transpose2d": "conv2d",
    "unfold": "conv2d",
    "fold": "conv2d",
    "max_pool2d": "max_pool2d",
    "max_over_time": "max_pool2d",
    "rnn": "rnn",
    "rnn_cell": "rnn",
}
_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}


def _dtypes(engine: str, op: str) -> list[str]:
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    if engine in ("cuda", "cupy"):
        return [name for name in names if kernels_of(op, name)]
    return names  # engines numba and torch refuse none of them


def support_table() -> str:
    """Markdown: a row for each function, a column for each engine."""
    engines = ("cuda", "cupy", "numba", "torch")
    lines = ["| | " + " | ".join(f"`{engine}`" for engine in engines) + " |", "|---" * (len(engines) + 1) + "|"]
    for function, op in FUNCTIONS.items():
        cells = (" ".join(_SHORT[name] for name in _dtypes(engine, op)) for engine in engines)
        lines.append(f"| `{function}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Prints the table, as README has it."""
    argparse.ArgumentParser(prog="python -m torch_unroll support", description=__doc__).parse_args(arguments)
    print(support_table())
    return 0
