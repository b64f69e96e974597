"""The timings of a run: the most telling cases first, every tile of a convolution with its prediction beside it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.cases import Case, parse
from benchmarks.choices import Prepared, Timer, engine_of, search
from benchmarks.gpu.work import tell
from benchmarks.measure import Setting, fair
from benchmarks.runner import measure_case
from benchmarks.suites import SUITES, select, telling
from benchmarks.timing import QUICK, Limits
from torch_unroll.kernels.planning import Configuration

#: A second for each case: fewer samples of more cases tell more in minutes.
LIMITS = Limits(least=10, most=60, seconds=0.8, uncertainty=0.01)
#: Samples of each tile.
SAMPLES = 15

_CONVOLUTIONS = ("fprop", "dgrad", "wgrad")
_POOLINGS = ("fprop", "dgrad")
_RECURRENCES = ("fprop", "train")
#: What tells most: directions, and the case without its direction.
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
    """The cases that tell most; on the emulator one of each op, made small."""
    told = [f"{op}/{direction}/{rest}" for op, directions, rest in _FIRST for direction in directions]
    if not small:
        return told
    one_each = {key.split("/")[0]: key for key in reversed(told)}
    return [parse(key).shrunk().key for key in one_each.values()]


def keys(small: bool) -> list[str]:
    """The cases in order: those that tell most, then on a GPU the suites' most telling."""
    if small:
        return first(small)
    suites = select(SUITES, ("bf16", "tf32"), ("channels_last",), ("conv2d", "max_pool2d", "rnn", "rnn_cell"))
    return list(dict.fromkeys([*first(small), *(selected.case.key for selected in telling(suites))]))


def run_timing(key: str, device_name: str, seed: int) -> None:
    """Measures a case and tells its row, and of a convolution each tile's time and prediction."""
    device, case = torch.device(device_name), parse(key)
    on_gpu = device.type == "cuda"
    setting = Setting(device, (engine_of(device),), ("eager",), LIMITS if on_gpu else QUICK, seed)
    engine = setting.engines[0]
    row = {**measure_case(case, setting), "suites": [], "labels": []}
    tell("result", row=row)
    ours = row["providers"].get(engine, row)
    if ours["status"] in ("wrong", "error", "out of memory"):
        tell("verdict", outcome="wrong" if ours["status"] == "wrong" else "error", detail=ours["message"])
    elif case.op == "conv2d" and case.direction in _CONVOLUTIONS:
        tiles = _tiles(case, device, seed)
        tell("result", tiles=tiles)
        for choice, why in tiles["wrong"].items():
            tell("verdict", outcome="wrong", detail=f"{choice}: {why}")


def _tiles(case: Case, device: torch.device, seed: int) -> dict[str, Any]:
    """The best splits of each variant's tiles: what was measured, what the model says, and what was wrong."""
    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    with fair(case.dtype), stream:
        prepared = Prepared(case, device, engine_of(device), seed)
        best: dict[tuple[str, str], Configuration] = {}
        for choice in prepared.choices:  # the one predicted fastest comes first
            best.setdefault((choice.variant, choice.tile), choice)
        prepared.choices = list(best.values())
        searched = search(prepared, _time_all, lambda doing: tell("doing", detail=doing))
    predicted = {str(choice): float(f"{1e6 * prepared.predicted[choice]:.4g}") for choice in prepared.choices}
    return {"key": prepared.key, **searched, "predicted_us": predicted}


def _time_all(choices: Any, timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    seconds = timer(choices, SAMPLES)
    return min(seconds, key=seconds.__getitem__), seconds


def run_ceilings(device_name: str) -> None:
    """Copy bandwidth, products, and the start-up of a graph: what every share is a share of."""
    from benchmarks.ceilings import measure_ceilings

    device = torch.device(device_name)
    tell("result", ceilings=measure_ceilings(device, QUICK, quick=True))
