"""The timings of a run: of cases, the most telling ones first, and of the tiles of each case whose function can be tuned."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.ceilings import measure_ceilings
from benchmarks.gpu.work import tell
from benchmarks.measure import Setting, fair
from benchmarks.ops import parse
from benchmarks.runner import measure_case
from benchmarks.suites import SUITES, select, telling
from benchmarks.timing import QUICK, Limits
from benchmarks.tuning.problem import Prepared, distinct, engine_name
from benchmarks.tuning.search import search
from benchmarks.tuning.strategies import Timer
from torch_unroll.kernels.planning import Configuration

#: A case is sampled for about a second, because in a short run more cases are more informative than more samples of each.
LIMITS = Limits(least=10, most=60, seconds=0.8, uncertainty=0.01)
#: How often each tile is sampled.
SAMPLES = 15

_CONVOLUTIONS = ("fprop", "dgrad", "wgrad")
_POOLINGS = ("fprop", "dgrad")
_RECURRENCES = ("fprop", "train")
#: The most telling cases: op, directions, and the rest of the key.
_FIRST = (
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=256,H=14,W=14,K=256,R=3,S=3,padding=1"),
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1"),
    ("rnn", _RECURRENCES, "bf16/nchw/T=128,N=32,I=1024,H=1024"),
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=64,H=56,W=56,K=256,R=1,S=1"),
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=512,H=56,W=56,K=512,R=3,S=3,padding=1"),
    ("max_pool2d", _POOLINGS, "bf16/channels_last/N=64,C=64,H=112,W=112,window=3,stride=2,padding=1"),
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=128,H=28,W=28,K=128,R=3,S=3,padding=1"),
    ("conv2d", _CONVOLUTIONS, "bf16/nchw/N=32,C=256,H=14,W=14,K=256,R=3,S=3,padding=1"),
    ("rnn", _RECURRENCES, "bf16/nchw/T=128,N=64,I=2560,H=2560"),
    ("conv2d", _CONVOLUTIONS, "bf16/channels_last/N=32,C=512,H=7,W=7,K=512,R=3,S=3,padding=1"),
    ("conv2d", _CONVOLUTIONS, "tf32/channels_last/N=32,C=256,H=14,W=14,K=256,R=3,S=3,padding=1"),
    ("rnn", _RECURRENCES, "bf16/nchw/T=128,N=64,I=256,H=256"),
    ("conv2d", ("fprop", "wgrad"), "bf16/channels_last/N=32,C=3,H=224,W=224,K=64,R=7,S=7,stride=2,padding=3"),
    ("max_pool2d", _POOLINGS, "bf16/channels_last/N=64,C=64,H=112,W=112,window=2,stride=2"),
    ("max_pool2d", _POOLINGS, "bf16/nchw/N=64,C=64,H=112,W=112,window=3,stride=2,padding=1"),
)


def first(small: bool) -> list[str]:
    """The keys of the most telling cases; if `small`, the key of one small case for each op among them, for the emulator."""
    names = [f"{op}/{direction}/{rest}" for op, directions, rest in _FIRST for direction in directions]
    if not small:
        return names
    by_op = {key.split("/")[0]: key for key in reversed(names)}
    return [parse(key).shrunk().key for key in by_op.values()]


def keys(small: bool) -> list[str]:
    """The keys of all cases in order: first the most telling ones and then, unless `small`, those of the suites in bf16 and TF32.

    Convolutions and poolings of the suites are timed in channels-last layout.
    """
    if small:
        return first(small)
    suites = select(SUITES, ("bf16", "tf32"), ("channels_last",), ("conv2d", "max_pool2d", "rnn", "rnn_cell"))
    return list(dict.fromkeys([*first(small), *(selected.case.key for selected in telling(suites))]))


def run_timing(key: str, device_name: str, seed: int) -> None:
    """Measures a case and reports its row.

    Unless the measurement failed, the tiles of the case are timed too if its function can be tuned.
    """
    device, case = torch.device(device_name), parse(key)
    on_gpu = device.type == "cuda"
    engine = engine_name(device)
    limits = LIMITS if on_gpu else QUICK
    setting = Setting(device=device, engines=(engine,), baselines=("eager",), limits=limits, seed=seed)
    row = {**measure_case(case, setting), "suites": [], "labels": []}
    tell("result", row=row)
    ours = row["providers"].get(engine, row)
    if ours["status"] in ("wrong", "error", "out of memory"):
        tell("verdict", outcome="wrong" if ours["status"] == "wrong" else "error", detail=ours["message"])
        return
    for tuned in distinct([case]):
        tiles = _tiles(tuned, device, seed)
        tell("result", tiles=tiles)
        for configuration, why in tiles["wrong"].items():
            tell("verdict", outcome="wrong", detail=f"{configuration}: {why}")


def _tiles(case: Case, device: torch.device, seed: int) -> dict[str, Any]:
    """Times each tile of each variant with the number of splits that is predicted to be fastest.

    Returns the row of the search, with the predicted time of each tile. Tiles with wrong results are not timed.
    """
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    with fair(case.dtype), stream:
        prepared = Prepared(case, device, engine_name(device), seed)
        best: dict[tuple[str, str], Configuration] = {}
        for configuration in prepared.configurations:  # in the order of their predicted times
            best.setdefault((configuration.variant, configuration.tile), configuration)
        prepared.configurations = list(best.values())
        searched = search(prepared, _time_all, lambda activity: tell("doing", detail=activity))
    predicted = {str(timed): float(f"{1e6 * prepared.predicted[timed]:.4g}") for timed in prepared.configurations}
    return {"key": prepared.key, **searched, "predicted_us": predicted}


def _time_all(configurations: Any, timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    seconds = timer(configurations, SAMPLES)
    return min(seconds, key=seconds.__getitem__), seconds


def run_ceilings(device_name: str) -> None:
    """Measures and reports the ceilings of the device, such as its highest rates, to which the shares in reports are relative."""
    device = torch.device(device_name)
    tell("result", ceilings=measure_ceilings(device, QUICK, quick=True))
