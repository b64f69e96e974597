"""A case as a short script that needs only torch and torch_unroll."""

from __future__ import annotations

import math

from benchmarks.cases import Case

_TIMING = """
for name, call in {"ours": ours, "torch": torchs}.items():
    timer = torch.utils.benchmark.Timer("call()", globals={"call": call})
    print(f"{name:<6}{timer.blocked_autorange(min_run_time=0.5).median * 1e6:10.2f} µs")
"""


def script(case: Case, engine: str) -> str:
    """The source of a script that runs a case on an engine and on torch, and prints the difference of the first results and both
    times.

    The script times less strictly than the runner. If a direction uses autograd, each timed call includes the forward pass. The
    script of a network runs forward and backward passes in fp32, and compares only times.
    """
    if case.op == "network":
        return _network(case, engine)
    operation, shape = case.operation, case.shape
    sizes = {**operation.sizes(shape), "dy": operation.output(shape)}
    imports = [line for line in (*operation.torch_import.splitlines(), *operation.ours_import.splitlines()) if line]
    direct = case.direction in operation.direct
    ours, theirs = (operation.expression(shape, case.direction, provider) for provider in (engine, "eager"))
    lines = [
        f"# {case.key}",
        "import torch",
        "import torch.utils.benchmark",
        *imports,
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f'torch.backends.cudnn.{operation.precision}.fp32_precision = "{"tf32" if case.dtype == "tf32" else "ieee"}"',
        "torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 0",
        "torch.manual_seed(0)",
    ]
    for name, size in sizes.items():
        scale = f" / {max(1, math.prod(size[1:]))}**0.5" if name.startswith("w") else ""
        values = f"((torch.rand({size}) * 2 - 1){scale}).to(device, {case.torch_dtype})"
        if len(size) == 4 and case.layout == "channels_last":
            values += ".contiguous(memory_format=torch.channels_last)"
        lines.append(f"{name} = {values}")
    if not direct:
        lines += [
            "",
            f"inputs = [{', '.join(name for name in sizes if name != 'dy')}]",
            "for tensor in inputs:",
            "    tensor.requires_grad_()",
        ]
    for name, expression in (("ours", ours), ("torchs", theirs)):
        body = expression if direct else f"torch.autograd.grad({expression}, inputs, dy)"
        lines += ["", "", f"def {name}():", f"    return {body}"]
    first = "" if direct else "[0]"
    return (
        "\n".join([*lines, "", "", f"result, expected = ours(){first}.double(), torchs(){first}.double()"])
        + '\nprint(f"difference: {(result - expected).norm() / expected.norm():.2e} of the norm")\n'
        + _TIMING.lstrip("\n")
    )


def _network(case: Case, engine: str) -> str:
    shape = case.shape
    return f"""\
# {case.key}
import copy

import torch
import torch.nn.functional as F
import torch.utils.benchmark
import torch_unroll
from torch_unroll import models

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
theirs = models.{shape.network}(nn=torch.nn).to(device)
mine = copy.deepcopy(theirs)
print(torch_unroll.replace(mine))
x = torch.rand({case.operation.sizes(shape)["x"]}, device=device)
target = torch.zeros(len(x), dtype=torch.long, device=device)


def step(model):
    F.cross_entropy(model(x), target).backward()


def ours():
    with torch_unroll.use_engine("{engine}"):
        step(mine)


def torchs():
    step(theirs)

{_TIMING}"""
