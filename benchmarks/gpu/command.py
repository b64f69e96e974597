"""`python -m benchmarks gpu`: one command that checks every kernel, and measures the GPU and the ops, within minutes."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import isolation
from benchmarks.arguments import pattern
from benchmarks.gpu import outcome, phases, place, summary
from benchmarks.gpu.failures.explain import explain
from benchmarks.gpu.keep import keep
from benchmarks.gpu.store import Store, alone
from benchmarks.gpu.then import run_second

_HELP = """\
Phases, the most important first:
  exact     runs every kernel twice, on small integers and poisoned memory, and compares for equality: cuda, then cupy and numba
  hardware  measures bandwidths, latencies and rates of products (first_light), and golden data for the emulator
  timings   times the most telling cases against torch, and every tile against the prediction of the model

Each job runs in its own process, and its result is saved as soon as it has ended; the same command continues where it stopped.

  python -m benchmarks gpu --minutes 8 --out out/gpu     the whole run on one GPU
  python -m benchmarks gpu --then --out out/gpu          a second, shorter run: failures under memcheck, or profiles and tests
  python -m benchmarks gpu explain out/gpu/checks.jsonl  analyses wrong results, and runs their cases on the emulator; no GPU
  python -m benchmarks gpu keep out/gpu                  copies results, golden data and choices into the repository
  python -m benchmarks gpu --device cpu --minutes 2      a rehearsal on the emulator

Exit status: 0 everything was right; 1 something was wrong or is left to do; 2 the run could not begin.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description="Checks and measures everything on a GPU within minutes.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="?", choices=("run", "explain", "keep"), default="run", help="run (the default), explain, keep"
    )
    parser.add_argument("path", nargs="?", type=Path, help="for explain, a file of checks; for keep, the folder of a run")
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="time for the whole run, from 1 to 240 (8)")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the results (out/gpu)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu stands for the emulator (cuda)")
    parser.add_argument("--processes", type=_count, help="concurrent jobs (8 on a GPU, one per core on the emulator)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the inputs, and of the selection of cases on the emulator (0)"
    )
    parser.add_argument("--only", metavar="PATTERN", type=pattern, help="only jobs whose name matches this regular expression")
    parser.add_argument("--shared", action="store_true", help="run although other processes use the GPU")
    parser.add_argument(
        "--then", action="store_true", help="the second run, which depends on the results of the first one in --out"
    )
    parser.add_argument("--case", metavar="TEXT", help="for explain, only cases whose description contains this text")
    return parser


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = float("nan")
    if not 1 <= minutes <= 240:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 240, got {text}")
    return minutes


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 64, got {text}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status.

    Raises:
        ValueError, OSError: the command cannot begin, or the disk is full; the message says why.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.what == "run":
        if options.path is not None:
            parser.error(f"unrecognized argument: {options.path}")
        return run(options, shlex.join(["python", "-m", "benchmarks", "gpu", *arguments]))
    if options.path is None:
        parser.error(f"{options.what}: expected a path")
    if options.what == "keep":
        print(keep(options.path))
        return 0
    print(explain(options.path, options.case))
    return 0


def see(device: str, folder: Path) -> dict[str, Any]:
    """Looks at the device in a separate process and returns what `place.look` reports.

    Raises:
        ValueError: the process crashed, failed, or took longer than a minute.
    """
    with TemporaryDirectory(prefix=".jobs-", dir=folder) as jobs:
        output = Path(jobs) / "look.txt"
        process = isolation.run(place.look, (device,), limit=60.0, output=output)
        seen = outcome.read("look", output, process)
    if seen["outcome"] != "right":
        raise ValueError(f"the {'GPU' if device == 'cuda' else 'emulator'} cannot be queried: {seen['detail']}")
    return seen


def run(options: argparse.Namespace, command: str = "", **planted: Any) -> int:
    """Runs the phases, or with `--then` the second run, within `--minutes`, and returns the exit status.

    `command` is the command line that continues the run. `planted` replaces fields of the plan in tests.
    """
    began = time.monotonic()
    # use_deterministic_algorithms imports torch._inductor.config, which would take seconds in every process if not preloaded.
    isolation.preload("benchmarks.gpu.timings", "torch._inductor.config")
    place.require_folder(options.out)
    with alone(options.out):
        try:
            return _run(options, command, began, planted)
        except KeyboardInterrupt:
            print("\ninterrupted: finished jobs are kept, and the same command continues", file=sys.stderr)
            raise


def _run(options: argparse.Namespace, command: str, began: float, planted: dict[str, Any]) -> int:
    seen = see(options.device, options.out)
    place.require_place(seen, options.shared)
    store = Store(options.out, {**seen["environment"], "seed": options.seed})
    store.run.update(engines=seen["engines"], clocks=seen["clocks"], complete=False)
    if command and not options.then:
        store.run["command"] = command
    store.write_run()
    only = options.only.search if options.only else lambda key: True
    workers = phases.processes(options.device, options.processes)
    plan = phases.Plan(
        store=store,
        device=options.device,
        minutes=options.minutes,
        processes=workers,
        seed=options.seed,
        began=began,
        only=only,
        **planted,
    )
    if options.then:
        return run_second(plan)
    engines = [name for name in ("cuda", "cupy", "numba") if seen["engines"][name] is None]
    if not phases.anything(plan, engines):
        raise ValueError(f"--only {options.only.pattern!r}: no job has a matching name")
    for engine in engines:
        phases.timed(store, f"exact {engine}", partial(phases.run_exactness, plan, engine))
    phases.timed(store, "hardware", partial(phases.run_hardware, plan))
    phases.timed(store, "timings", partial(phases.run_timings, plan))
    left, beyond = phases.left(plan), phases.beyond(plan, engines)
    store.run["complete"] = not (left or beyond)
    store.write_run()
    print(summary.text(store, left, beyond), flush=True)
    return 0 if summary.verdict(store, complete=not left) else 1
