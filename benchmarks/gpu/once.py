"""`python -m benchmarks.gpu.once` runs one exact case, or the call of one timing, for a sanitizer or a profiler to observe."""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.gpu.work import run_case
from benchmarks.ops import parse
from benchmarks.tuning.problem import engine_name


def main(what: str, name: str, *rest: str) -> None:
    """Does what the arguments of the command line name.

    `case JSON ENGINE DEVICE` runs an exact case, and exits with status 1 if the case fails. `timing KEY DEVICE` makes the call of
    a timing three times.
    """
    if what == "case":
        if not run_case(json.loads(name), *rest):
            sys.exit(1)
        return
    (device_name,) = rest
    device, case = torch.device(device_name), parse(name)
    call = case.operation.call(case, case.operation.tensors(case, device, 0), engine_name(device))
    for _ in range(3):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
