"""`make bench`: checks every op on every engine that can run here, times some cases, and trains two networks."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.environment import describe
from benchmarks.measure import Setting, stands_in
from benchmarks.ops import OPERATIONS
from benchmarks.report import plots
from benchmarks.report.tables import summary
from benchmarks.report.text import align
from benchmarks.runner import Run, measure_case
from benchmarks.suites import SMALL, SUITES, quick, select
from benchmarks.timing import QUICK, Limits
from torch_unroll.engines import NAMES, refusal, use_engine
from torch_unroll.training.digits import RECIPES, Training, load

CHECKED_DTYPES = ("fp16", "bf16", "fp32", "fp64")


def bench(out: Path, device: torch.device) -> int:
    """Runs all three parts. Returns 1 if a result is wrong, a call raised an error or a network learned too little, else 0."""
    document = results.new(describe(device), "python -m benchmarks bench", 0)
    print(f"torch-unroll on {document['environment']['device']}, torch {document['environment']['torch']}\n")
    document["rows"] = check(device)
    print(checks_table(document["rows"]), "\n")
    timed = measure_times(out, device)
    print(summary(timed), "\n")
    if device.type != "cuda":
        print("No GPU here: these are timings of plain torch on the CPU.\n")
    document["training"] = train(device)
    print(training_table(document["training"]), "\n")
    document.update(ceilings=timed["ceilings"], overheads=timed["overheads"], complete=True)
    document["rows"] = document["rows"] + timed["rows"]
    results.save(document, out / "bench.json")
    draw(timed, document["training"], out / "bench.png")
    print(f"written: {out / 'bench.json'}, {out / 'bench.png'}")
    bad = [row["case"] for row in document["rows"] if row["status"] in ("wrong", "error")]
    weak = [name for name, result in document["training"].items() if result["accuracy"] < result["expected"]]
    for failure in (*bad, *weak):
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if bad or weak else 0


def check(device: torch.device) -> list[results.Row]:
    """Checks the ops and shapes in SMALL on every engine against float64, in every direction and layout, for CHECKED_DTYPES.

    For an engine that runs natively, the row also holds its time, from a single sample.
    """
    setting = Setting(device=device, engines=NAMES, baselines=(), limits=Limits(least=1, most=1))
    cases = [
        Case(OPERATIONS[op], direction, dtype, layout, shape)
        for op, shape in SMALL.items()
        for direction in OPERATIONS[op].directions
        for dtype in CHECKED_DTYPES
        for layout in OPERATIONS[op].layouts
    ]
    progress = tqdm(cases, desc="checking", unit="case", file=sys.stderr, dynamic_ncols=True)
    return [{**measure_case(case, setting), "suites": ["bench"], "labels": []} for case in progress]


def checks_table(rows: list[results.Row]) -> str:
    """A table with the number of right cases of each op on each engine, and why the engines without a column cannot run here."""
    engines = [name for name in NAMES if any(row["providers"].get(name, {}).get("status") != "refused" for row in rows)]
    lines = []
    for op in SMALL:
        line = [op]
        for engine in engines:
            statuses = [(row["providers"].get(engine) or row)["status"] for row in rows if row["op"] == op]
            right = sum(status in results.RIGHT for status in statuses)
            refused = statuses.count("refused")
            wrong = len(statuses) - right - refused
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
    """Times the most telling cases of every suite except `training`, with few samples."""
    on_gpu = device.type == "cuda"
    suites = [name for name in SUITES if name != "training"]
    cases = quick(select(suites, ["bf16"] if on_gpu else ["fp32"], ["channels_last"] if on_gpu else ["nchw"]), shrink=not on_gpu)
    engines = tuple(
        name for name in NAMES if not stands_in(name, device) and refusal(name, "conv2d", device, torch.float32) is None
    )
    path = out / "bench-times.json"
    results.Journal(path).close()  # drops what an interrupted run left: this run is quick enough to be repeated from the start
    setting = Setting(device=device, engines=engines, baselines=("eager",), limits=QUICK)
    document = Run(cases=cases, setting=setting, out=path, command="python -m benchmarks bench", quick=True).go()
    path.unlink()
    return document


def train(device: torch.device) -> dict[str, dict[str, Any]]:
    """Trains two networks on the digits, on the first engine that supports the GPU or, without a GPU, on engine torch."""
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
    """A table of the losses and accuracies that the networks reached."""
    rows = [
        [
            name,
            result["engine"],
            str(len(result["epochs"])),
            f"{result['epochs'][-1]['loss']:.3f}",
            f"{result['accuracy']:.1%}",
            f"{result['expected']:.1%}",
            f"{result['seconds']:.0f} s",
        ]
        for name, result in trained.items()
    ]
    return align(
        ("trained on 1,198 digits", "engine", "epochs", "loss", "held-out accuracy", "at least", "in"), rows, range(2, 7)
    )


def draw(document: results.Document, trained: dict[str, dict[str, Any]], path: Path) -> None:
    """Plots the accuracy over the epochs, and the time of each case against that of eager torch."""
    figure, (learning, times) = plots.new_figure(1, 2, (11, 4.5))
    for i, (name, result) in enumerate(trained.items()):
        epochs = range(1, len(result["epochs"]) + 1)
        learning.plot(epochs, [epoch["accuracy"] for epoch in result["epochs"]], label=name, color=plots.COLOURS[i], marker=".")
        learning.axhline(result["expected"], color=plots.COLOURS[i], linewidth=0.8, linestyle=":")
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
