"""The suites: which shapes are measured, and where the shapes come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch._subclasses import FakeTensorMode

from benchmarks.cases import Case
from benchmarks.models import NETWORKS, build
from benchmarks.names import Shape, find
from benchmarks.ops import OPERATIONS
from benchmarks.ops.conv2d import WindowShape
from benchmarks.ops.max_pool2d import PoolShape, TimeShape
from benchmarks.ops.network import NetworkShape
from benchmarks.ops.rnn import CellShape, RnnShape
from benchmarks.suites.derive import Entry, layers

#: The largest number of cases of one suite that a quick run measures.
QUICK_CASES = 6

_IMAGES = WindowShape.parse("N=2,C=16,H=12,W=12,K=24,R=3,S=3,stride=2,padding=1,bias=1")
#: One small shape of every op but `network`, for checks of every direction, dtype and layout.
SMALL: dict[str, Shape] = {
    "conv2d": _IMAGES,
    "conv_transpose2d": _IMAGES,
    "unfold": _IMAGES,
    "fold": _IMAGES,
    "max_pool2d": PoolShape.parse("N=2,C=16,H=12,W=12,window=3,stride=2,padding=1"),
    "max_over_time": TimeShape(T=7, N=3, C=40),
    "rnn": RnnShape(T=5, N=3, I=12, H=40, layers=2, directions=2),
    "rnn_cell": CellShape(N=5, I=12, H=40),
}


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
        numbers = {name: int(value) for name, value in row.items()}
        shape = WindowShape(
            N=numbers["N"],
            C=numbers["C"],
            H=numbers["H"],
            W=numbers["W"],
            K=numbers["K"],
            R=numbers["R"],
            S=numbers["S"],
            stride=(numbers["stride_h"], numbers["stride_w"]),
            padding=(numbers["pad_h"], numbers["pad_w"]),
        )
        shapes[shape] = None
    return [Entry("conv2d", shape, ("fprop", "wgrad") if shape.C <= 3 else ("fprop", "dgrad", "wgrad")) for shape in shapes]


def _deepbench_rnn() -> list[Entry]:
    rows = [row for row in _deepbench()["rnn_training"] if row["cell"] == "vanilla"]
    return [
        Entry("rnn", RnnShape(T=T, N=N, I=H, H=H, nonlinearity="relu"), ("fprop", "train"))
        for T, N, H in dict.fromkeys((int(row["T"]), int(row["N"]), int(row["H"])) for row in rows)
    ]


def _rnn_sweep() -> list[Entry]:
    """Varies one of H, N and T around H = 1024, N = 32, T = 128, and adds small, deep, bidirectional, relu and odd-sized
    recurrences, and the cell."""
    hidden = [RnnShape(T=128, N=32, I=H, H=H) for H in (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2560)]
    batch = [RnnShape(T=128, N=N, I=1024, H=1024) for N in (1, 4, 8, 16, 64, 128, 256)] + [RnnShape(T=128, N=64, I=256, H=256)]
    steps = [RnnShape(T=T, N=32, I=1024, H=1024) for T in (1, 8, 32, 512, 2048)]
    kinds = [
        RnnShape(T=128, N=32, I=1024, H=1024, layers=3),
        RnnShape(T=128, N=32, I=512, H=512, directions=2),
        RnnShape(T=128, N=32, I=1024, H=1024, nonlinearity="relu"),
        RnnShape(T=128, N=32, I=1000, H=1000),
    ]
    cells = [CellShape(N=N, I=H, H=H) for N, H in ((32, 256), (32, 1024), (128, 1024))]
    return [Entry("rnn", shape, ("fprop", "train")) for shape in (*hidden, *batch, *steps, *kinds)] + [
        Entry("rnn_cell", shape, ("fprop", "train")) for shape in cells
    ]


def _pooling() -> list[Entry]:
    """Four windows over a tensor of more than 100 MB, to measure memory bandwidth; then small planes; then sequences."""
    windows = ("window=2,stride=2", "window=3,stride=2,padding=1", "window=3,stride=2", "window=3,stride=1,padding=1")
    large = [f"N=64,C=64,H=112,W=112,{window}" for window in windows]
    small = [
        "N=512,C=512,H=4,W=4,window=2,stride=2",
        "N=16,C=64,H=28,W=28,window=2,stride=2",
        "N=32,C=832,H=7,W=7,window=3,stride=1,padding=1",
    ]
    entries = [Entry("max_pool2d", PoolShape.parse(text), ("fprop", "dgrad", "train")) for text in (*large, *small)]
    times = (TimeShape(T=128, N=32, C=1024), TimeShape(T=1024, N=64, C=512))
    return entries + [Entry("max_over_time", shape, ("fprop", "train")) for shape in times]


def _unrolling() -> list[Entry]:
    shapes = ("N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1", "N=32,C=128,H=56,W=56,K=128,R=3,S=3,stride=2,padding=1")
    return [
        Entry(op, WindowShape.parse(text), ("fprop", "train"))
        for op, text in product(("unfold", "fold", "conv_transpose2d"), shapes)
    ]


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
        Suite("deepbench-conv", "DeepBench's training set of convolutions, without the duplicates", _deepbench_conv),
        Suite(
            "deepbench-rnn",
            "DeepBench's training set of vanilla recurrences; here the product with the input is included",
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
    """A case, the suites that contain it, and the layers that have its shape."""

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
    """The cases of some suites. Each case is listed once, however many layers share it.

    Without `ops`, every op is selected. Without `directions`, each entry is selected in its own directions; otherwise it is
    selected in all of `directions` that its op supports. An op that supports none of `layouts` is selected in the first layout
    that it supports.
    """
    ops, directions, dtypes, layouts = list(ops), list(directions), list(dtypes), list(layouts)
    by_key: dict[str, Selected] = {}
    for name in suites:
        for entry in SUITES[find("suite", name, list(SUITES))].entries:
            if ops and entry.op not in ops:
                continue
            labels = [f"{name}: {label}" for label in entry.labels]
            for case in _cases(entry, directions, dtypes, layouts):
                selected = by_key.setdefault(case.key, Selected(case, [], []))
                if name not in selected.suites:
                    selected.suites.append(name)
                selected.labels += [label for label in labels if label not in selected.labels]
    return list(by_key.values())


def _cases(entry: Entry, directions: Sequence[str], dtypes: Sequence[str], layouts: Sequence[str]) -> list[Case]:
    operation = OPERATIONS[entry.op]
    chosen = [direction for direction in operation.directions if direction in directions] if directions else entry.directions
    supported = [layout for layout in layouts if layout in operation.layouts] or operation.layouts[:1]
    return [
        Case(operation, direction, dtype, layout, entry.shape) for direction, dtype, layout in product(chosen, dtypes, supported)
    ]


def telling(cases: list[Selected]) -> list[Selected]:
    """Orders cases so that the first ones tell most, for runs that have no time for all of them.

    Suites take turns. Within a suite, the kinds of cases (op, direction, dtype, layout, window, stride) take turns, and the
    largest case of a kind comes first.
    """
    by_suite: dict[str, list[Selected]] = {}
    for selected in cases:
        by_suite.setdefault(selected.suites[0], []).append(selected)
    return in_turn([in_turn(_kinds(members)) for members in by_suite.values()])


def _kinds(cases: list[Selected]) -> list[list[Selected]]:
    kinds: dict[tuple[object, ...], list[Selected]] = {}
    for selected in sorted(cases, key=lambda selected: -max(selected.case.flops, selected.case.bytes)):
        case = selected.case
        window = (getattr(case.shape, "R", 0), getattr(case.shape, "stride", 0), getattr(case.shape, "window", 0))
        kinds.setdefault((case.op, case.direction, case.dtype, case.layout, window), []).append(selected)
    return list(kinds.values())


def in_turn(lists: list[list[Selected]]) -> list[Selected]:
    """The first element of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [members[i] for i in range(longest) for members in lists if i < len(members)]


def quick(cases: list[Selected], shrink: bool) -> list[Selected]:
    """The most telling cases of each suite; with `shrink`, small versions of them for a CPU."""
    chosen: dict[str, Selected] = {}
    counts: dict[str, int] = {}
    for selected in telling(cases):
        suite = selected.suites[0]
        if counts.get(suite, 0) < QUICK_CASES:
            case = selected.case.shrunk() if shrink else selected.case
            if case.key not in chosen:
                counts[suite] = counts.get(suite, 0) + 1
            chosen.setdefault(case.key, Selected(case, selected.suites, selected.labels))
    return list(chosen.values())
