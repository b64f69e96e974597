"""The suites: which shapes are measured, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch._subclasses import FakeTensorMode

from benchmarks.cases import Case, find
from benchmarks.models import NETWORKS, build
from benchmarks.ops import OPERATIONS
from benchmarks.ops.conv2d import WindowShape
from benchmarks.ops.max_pool2d import PoolShape, TimeShape
from benchmarks.ops.network import NetworkShape
from benchmarks.ops.rnn import CellShape, RnnShape
from benchmarks.suites.derive import Entry, layers


@dataclass(frozen=True)
class Suite:
    """A named list of shapes."""

    name: str
    about: str
    make: Callable[[], list[Entry]]

    @property
    def entries(self) -> list[Entry]:
        return _entries(self.name)


@cache
def _entries(name: str) -> list[Entry]:
    return SUITES[name].make()


def _network(name: str) -> list[Entry]:
    network = NETWORKS[name]
    with FakeTensorMode():
        return layers(build(name).eval(), torch.empty(network.N, network.channels, network.image, network.image))


def _deepbench() -> dict[str, list[dict[str, int | str]]]:
    return json.loads((Path(__file__).parent / "deepbench.json").read_text())


def _deepbench_conv() -> list[Entry]:
    shapes: dict[WindowShape, None] = {}
    for row in _deepbench()["convolution_training"]:
        of = {name: int(value) for name, value in row.items()}
        stride, padding = (of["stride_h"], of["stride_w"]), (of["pad_h"], of["pad_w"])
        shapes[WindowShape(of["N"], of["C"], of["H"], of["W"], of["K"], of["R"], of["S"], stride, padding)] = None
    return [Entry("conv2d", shape, ("fprop", "wgrad") if shape.C <= 3 else ("fprop", "dgrad", "wgrad")) for shape in shapes]


def _deepbench_rnn() -> list[Entry]:
    rows = [row for row in _deepbench()["rnn_training"] if row["cell"] == "vanilla"]
    return [
        Entry("rnn", RnnShape(T, N, H, H, nonlinearity="relu"), ("fprop", "train"))
        for T, N, H in dict.fromkeys((int(row["T"]), int(row["N"]), int(row["H"])) for row in rows)
    ]


def _rnn_sweep() -> list[Entry]:
    """One of H, N, T varies; the others stay at H = 1024, N = 32, T = 128. Then depth, both directions, relu, one cell."""
    hidden = [RnnShape(128, 32, H, H) for H in (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2560)]
    batch = [RnnShape(128, N, 1024, 1024) for N in (1, 4, 8, 16, 64, 128, 256)] + [RnnShape(128, 64, 256, 256)]
    steps = [RnnShape(T, 32, 1024, 1024) for T in (1, 8, 32, 512, 2048)]
    kinds = [
        RnnShape(128, 32, 1024, 1024, layers=3),
        RnnShape(128, 32, 512, 512, directions=2),
        RnnShape(128, 32, 1024, 1024, nonlinearity="relu"),
        RnnShape(128, 32, 1000, 1000),
    ]
    cells = [CellShape(N, H, H) for N, H in ((32, 256), (32, 1024), (128, 1024))]
    return [Entry("rnn", shape, ("fprop", "train")) for shape in (*hidden, *batch, *steps, *kinds)] + [
        Entry("rnn_cell", shape, ("fprop", "train")) for shape in cells
    ]


def _pooling() -> list[Entry]:
    """Every window over planes large enough to measure memory (more than 100 MB), then small planes, then sequences."""
    windows = (((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 3), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)))
    large = [PoolShape(64, 64, 112, 112, *window) for window in windows]
    small = [
        PoolShape(512, 512, 4, 4, (2, 2), (2, 2)),
        PoolShape(16, 64, 28, 28, (2, 2), (2, 2)),
        PoolShape(32, 832, 7, 7, (3, 3), (1, 1), (1, 1)),
    ]
    entries = [Entry("max_pool2d", shape, ("fprop", "dgrad", "train")) for shape in (*large, *small)]
    times = (TimeShape(128, 32, 1024), TimeShape(1024, 64, 512))
    return entries + [Entry("max_over_time", shape, ("fprop", "train")) for shape in times]


def _unrolling() -> list[Entry]:
    """unfold, fold and the transposed convolution."""
    shapes = (WindowShape(32, 64, 56, 56, 64, 3, 3, padding=(1, 1)), WindowShape(32, 128, 56, 56, 128, 3, 3, (2, 2), (1, 1)))
    return [Entry(op, shape, ("fprop", "train")) for op in ("unfold", "fold", "conv_transpose2d") for shape in shapes]


def _training() -> list[Entry]:
    return [Entry("network", NetworkShape(name, network.N, network.image), ("train",)) for name, network in NETWORKS.items()]


def _layers_of(name: str, title: str) -> Suite:
    return Suite(name, f"the convolutions and poolings of {title}, read off torch_unroll.models", lambda: _network(name))


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _layers_of("lenet5", "LeNet-5"),
        _layers_of("alexnet", "AlexNet"),
        _layers_of("googlenet", "GoogLeNet"),
        _layers_of("resnet18", "ResNet-18"),
        _layers_of("resnet50", "ResNet-50"),
        _layers_of("densenet121", "DenseNet-121"),
        Suite("deepbench-conv", "DeepBench's convolutions, training set, without the duplicates", _deepbench_conv),
        Suite(
            "deepbench-rnn",
            "DeepBench's vanilla recurrences, training set; its product with the input is counted here",
            _deepbench_rnn,
        ),
        Suite("rnn", "recurrence against hidden size, batch, steps, depth, directions; the cell", _rnn_sweep),
        Suite("pooling", "max pooling of large and of small planes, and over time", _pooling),
        Suite("unrolling", "unfold, fold, transposed convolution", _unrolling),
        Suite("training", "whole training steps of the six networks", _training),
    )
}


@dataclass
class Selected:
    """A case, and the suites and layers it stands for."""

    case: Case
    suites: list[str]
    labels: list[str]


def select(
    suites: Iterable[str],
    dtypes: Iterable[str],
    layouts: Iterable[str],
    ops: Iterable[str] = (),
    directions: Iterable[str] = (),
) -> list[Selected]:
    """The cases of some suites, each once however many layers share it; an op that has no layouts gets one."""
    ops, directions, dtypes, layouts = list(ops), list(directions), list(dtypes), list(layouts)
    found: dict[str, Selected] = {}
    for name in suites:
        for entry in SUITES[find("suite", name, list(SUITES))].entries:
            if ops and entry.op not in ops:
                continue
            operation = OPERATIONS[entry.op]
            chosen = [each for each in operation.directions if each in directions] if directions else entry.directions
            for direction in chosen:
                for dtype in dtypes:
                    for layout in [each for each in layouts if each in operation.layouts] or operation.layouts[:1]:
                        case = Case(entry.op, direction, dtype, layout, entry.shape)
                        selected = found.setdefault(case.key, Selected(case, [], []))
                        if name not in selected.suites:
                            selected.suites.append(name)
                        selected.labels += [
                            f"{name}: {label}" for label in entry.labels if f"{name}: {label}" not in selected.labels
                        ]
    return list(found.values())


def telling(cases: list[Selected]) -> list[Selected]:
    """The order in which a run with a budget takes its cases: suites in turn; in each, every kind of case (op, direction, dtype,
    layout, window) in turn, the largest of a kind first."""
    by_suite: dict[str, list[Selected]] = {}
    for selected in cases:
        by_suite.setdefault(selected.suites[0], []).append(selected)
    return in_turn([in_turn(_kinds(each)) for each in by_suite.values()])


def _kinds(cases: list[Selected]) -> list[list[Selected]]:
    kinds: dict[tuple[object, ...], list[Selected]] = {}
    for selected in sorted(cases, key=lambda each: -max(each.case.flops, each.case.bytes)):
        case = selected.case
        window = (getattr(case.shape, "R", 0), getattr(case.shape, "stride", 0), getattr(case.shape, "window", 0))
        kinds.setdefault((case.op, case.direction, case.dtype, case.layout, window), []).append(selected)
    return list(kinds.values())


def in_turn(lists: list[list[Selected]]) -> list[Selected]:
    """The first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [each[i] for i in range(longest) for each in lists if i < len(each)]
