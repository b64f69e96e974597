"""The process of `python -m benchmarks overhead` that measures; the environment is as `command.main` sets it."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.environment import describe
from benchmarks.overhead.command import MARGIN, limit, make_parser
from benchmarks.overhead.counts import counter
from benchmarks.overhead.measure import measure, undisturbed
from benchmarks.overhead.rows import Row, select
from benchmarks.overhead.stub import LaunchedError, no_launches
from benchmarks.report.text import align, microseconds

SCHEMA = "torch-unroll-overhead"
VERSION = 1


def measure_all(rows: Sequence[Row], rounds: int, command: str = "") -> results.Document:
    """Measures rows and returns the document of the results."""
    torch.manual_seed(0)
    with undisturbed():
        environment = describe(torch.device("cpu"))
    document: results.Document = {
        "schema": SCHEMA,
        "version": VERSION,
        "command": command,
        "environment": environment,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "prepare": os.environ.get("TORCH_UNROLL_PREPARE") != "0",
        "rounds": rounds,
    }
    with no_launches() as stub:
        count = counter(stub.launches)
        progress = tqdm(rows, unit="row", file=sys.stderr, dynamic_ncols=True, delay=2.0)
        measured = []
        for row in progress:
            progress.set_description(row.name, refresh=False)
            measured.append(measure(row, rounds, count))
    return {**document, "rows": measured}


def table(document: results.Document) -> str:
    """A table of the results."""
    titles = ["host time of a call", "ours µs", "torch µs", "null µs", "ours/torch", "at most", "launches", "allocations"]
    if document["gpu"]:
        titles += ["real: ours µs", "torch µs"]
    return align(titles, [_cells(row) for row in document["rows"]], right=range(1, len(titles)))


def _cells(row: dict[str, Any]) -> list[str]:
    def median(times: dict[str, Any], name: str) -> str:
        return microseconds(times[name]["median"]) if name in times else "–"

    cells = [row["row"], *(median(row["us"], name) for name in ("ours", "torch", "null"))]
    cells += [f"{row['ratio']['median']:.2f}", limit(row["at_most"]), str(row["launches"]), str(row["allocations"])]
    if row["gpu_us"]:
        cells += [median(row["gpu_us"], name) for name in ("ours", "torch")]
    return cells


def too_slow(document: results.Document) -> list[str]:
    """A sentence about each row whose ratio exceeds its limit by more than the margin."""
    slow = [row for row in document["rows"] if row["at_most"] is not None and row["ratio"]["median"] > MARGIN * row["at_most"]]
    return [f"{row['row']}: {row['ratio']['median']:.2f} × torch, at most {MARGIN} × {row['at_most']:.2f}" for row in slow]


def run(options: argparse.Namespace, command: str = "") -> int:
    """Measures what the options select, prints a table, and returns the exit status."""
    document = measure_all(select(options.only, options.compiled), options.rounds, command)
    print(table(document))
    if options.json:
        results.save(document, options.json)
        print(f"\nwritten: {options.json}")
    failures = too_slow(document) if options.check else []
    for failure in failures:
        print(f"TOO SLOW: {failure}", file=sys.stderr)
    return 1 if failures else 0


def main(arguments: Sequence[str]) -> int:
    """Measures and returns the exit status."""
    try:
        return run(make_parser().parse_args(arguments), shlex.join(["python", "-m", "benchmarks", "overhead", *arguments]))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, LaunchedError) as error:
        print(f"python -m benchmarks overhead: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
