"""What `make bench` runs: every op checked on every engine that can run here, some timed, two networks trained."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from tqdm import tqdm

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.cli import quick
from benchmarks.environment import describe
from benchmarks.measure import Setting, stands_in
from benchmarks.ops import OPERATIONS
from benchmarks.ops.conv2d import WindowShape
from benchmarks.ops.max_pool2d import PoolShape, TimeShape
from benchmarks.ops.rnn import CellShape, RnnShape
from benchmarks.report import plots
from benchmarks.report.tables import summary
from benchmarks.report.text import align
from benchmarks.runner import Run, measure_case
from benchmarks.suites import SUITES, select
from benchmarks.timing import QUICK, Limits
from torch_unroll.engines import NAMES, refusal, use_engine
from torch_unroll.training.digits import RECIPES, Training, load

_IMAGES = WindowShape(2, 16, 12, 12, 24, 3, 3, stride=(2, 2), padding=(1, 1), bias=1)
#: A small case of every op: checked in every direction, dtype and layout.
SMALL: dict[str, Any] = {
    "conv2d": _IMAGES,
    "conv_transpose2d": _IMAGES,
    "unfold": _IMAGES,
    "fold": _IMAGES,
    "max_pool2d": PoolShape(2, 16, 12, 12, (3, 3), (2, 2), (1, 1)),
    "max_over_time": TimeShape(7, 3, 40),
    "rnn": RnnShape(5, 3, 12, 40, layers=2, directions=2),
    "rnn_cell": CellShape(5, 12, 40),
}
CHECKED_DTYPES = ("fp16", "bf16", "fp32", "fp64")


def bench(out: Path, device: torch.device) -> int:
    """Runs all three parts; 1 if a check failed or a network learned too little."""
    document = results.new(describe(device), "python -m benchmarks bench", 0)
    print(f"torch-unroll on {document['environment']['device']}, torch {document['environment']['torch']}\n")
    document["rows"] = check(device)
    print(checks_table(document["rows"]), "\n")
    timed = measure_times(out, device)
    print(summary(timed), "\n")
    if device.type != "cuda":
        print("No GPU here: these are timings of plain torch on the CPU, shown for what they are.\n")
    document["training"] = train(device)
    print(training_table(document["training"]), "\n")
    document.update(ceilings=timed["ceilings"], overheads=timed["overheads"], complete=True)
    document["rows"] = document["rows"] + timed["rows"]
    results.save(document, out / "bench.json")
    draw(timed, document["training"], out / "bench.png")
    print(f"written: {out / 'bench.json'}, {out / 'bench.png'}")
    bad = [row["case"] for row in document["rows"] if row["status"] in ("wrong", "error")]
    weak = [name for name, each in document["training"].items() if each["accuracy"] < each["expected"]]
    for failure in (*bad, *weak):
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if bad or weak else 0


def check(device: torch.device) -> list[results.Row]:
    """Every op, direction, dtype and layout on every engine, against float64; nothing is timed."""
    setting = Setting(device, NAMES, (), Limits(least=1, most=1))
    cases = [
        Case(op, direction, dtype, layout, shape)
        for op, shape in SMALL.items()
        for direction in OPERATIONS[op].directions
        for dtype in CHECKED_DTYPES
        for layout in OPERATIONS[op].layouts
    ]
    progress = tqdm(cases, desc="checking", unit="case", file=sys.stderr, dynamic_ncols=True)
    return [{**measure_case(case, setting), "suites": ["bench"], "labels": []} for case in progress]


def checks_table(rows: list[results.Row]) -> str:
    """Ops by engines: how many cases are right, or the reason why there are none."""
    engines = [name for name in NAMES if any(row["providers"].get(name, {}).get("status") != "refused" for row in rows)]
    lines = []
    for op in SMALL:
        line = [op]
        for engine in engines:
            found = [row["providers"].get(engine) or row for row in rows if row["op"] == op]
            right = sum(each["status"] in ("ok", "checked") for each in found)
            refused = sum(each["status"] == "refused" for each in found)
            wrong = len(found) - right - refused
            line.append(f"{right} right" + (f", {wrong} WRONG" if wrong else "") if right or wrong else "-")
        lines.append(line)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    titles = [f"{name} ({stands_in(name, device)})" if stands_in(name, device) else name for name in engines]
    text = align(("checked against float64", *titles), lines)
    for name in NAMES:
        reason = refusal(name, "conv2d", device, torch.float32)
        if name not in engines and reason:
            text += f"\n{name}: not here: {reason}"
    return text


def measure_times(out: Path, device: torch.device) -> results.Document:
    """The most telling cases of every suite but whole training steps, quickly."""
    on_gpu = device.type == "cuda"
    suites = [name for name in SUITES if name != "training"]
    cases = quick(select(suites, ["bf16"] if on_gpu else ["fp32"], ["channels_last"] if on_gpu else ["nchw"]), shrink=not on_gpu)
    engines = tuple(
        name for name in NAMES if not stands_in(name, device) and refusal(name, "conv2d", device, torch.float32) is None
    )
    path = out / "bench-times.json"
    results.Journal(path).close()  # of a run that was interrupted: this one is quick enough to start anew
    document = Run(cases, Setting(device, engines, ("eager",), QUICK), path, "python -m benchmarks bench", quick=True).go()
    path.unlink()
    return document


def train(device: torch.device) -> dict[str, dict[str, Any]]:
    """Trains the two networks on the digits with the first engine that can; the reference engine where there is no GPU."""
    data = load()
    engine = "auto" if device.type == "cuda" else "torch"
    trained = {}
    for name, recipe in RECIPES.items():
        began = time.perf_counter()
        curve = []
        with use_engine(engine):
            training = Training(recipe, data, device)
            progress = tqdm(training.epochs(), desc=name, total=recipe.epochs, unit="epoch", file=sys.stderr, dynamic_ncols=True)
            for loss, accuracy in progress:
                curve.append({"loss": loss, "accuracy": accuracy, "seconds": time.perf_counter() - began})
                progress.set_postfix_str(f"loss {loss:.3f}, held-out accuracy {accuracy:.1%}")
        trained[name] = {
            "engine": engine,
            "device": str(device),
            "accuracy": curve[-1]["accuracy"],
            "expected": recipe.expected,
            "seconds": curve[-1]["seconds"],
            "epochs": curve,
        }
    return trained


def training_table(trained: dict[str, dict[str, Any]]) -> str:
    """What the networks reached."""
    rows = [
        [
            name,
            each["engine"],
            str(len(each["epochs"])),
            f"{each['epochs'][-1]['loss']:.3f}",
            f"{each['accuracy']:.1%}",
            f"{each['expected']:.1%}",
            f"{each['seconds']:.0f} s",
        ]
        for name, each in trained.items()
    ]
    return align(
        ("trained on 1,198 digits", "engine", "epochs", "loss", "held-out accuracy", "at least", "in"), rows, range(2, 7)
    )


def draw(document: results.Document, trained: dict[str, dict[str, Any]], path: Path) -> None:
    """How the networks learned, and each op's time beside torch's own."""
    figure, (learning, times) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for i, (name, each) in enumerate(trained.items()):
        epochs = range(1, len(each["epochs"]) + 1)
        learning.plot(epochs, [epoch["accuracy"] for epoch in each["epochs"]], label=name, color=plots.COLOURS[i], marker=".")
        learning.axhline(each["expected"], color=plots.COLOURS[i], linewidth=0.8, linestyle=":")
    learning.set(title="Held-out accuracy on real digits", xlabel="epoch", ylabel="accuracy")
    learning.legend()
    rows = [row for row in document["rows"] if row["ratios"]]
    for i, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        pairs = [
            (row["providers"]["eager"]["warm"]["median"], row["providers"][name.split("/")[0]]["warm"]["median"])
            for row in rows
            if row["op"] == op
            for name in row["ratios"]
        ]
        times.scatter(*zip(*pairs, strict=True), s=16, label=op, color=plots.COLOURS[i % len(plots.COLOURS)])
    low, high = times.get_xlim()
    ours = "ours" if document["environment"]["device_type"] == "cuda" else "engine torch, the reference"
    title = f"On {document['environment']['device'][:50]}"
    times.plot([low, high], [low, high], color="black", linewidth=1)
    times.set(xscale="log", yscale="log", xlabel="eager torch, µs", ylabel=f"{ours}, µs", title=title)
    if rows:
        times.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)
    pyplot.close(figure)
