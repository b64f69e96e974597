"""The commands of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.cases import DIRECTIONS, DTYPES, LAYOUTS, find, parse
from benchmarks.ops import OPERATIONS
from benchmarks.ops.operation import BASELINES
from benchmarks.suites import SUITES, Selected, select, telling
from torch_unroll.engines import NAMES, refusal

_EXAMPLES = """\
Start here:
  python -m benchmarks list                                  the suites; `list --suite resnet50` shows a suite's cases
  python -m benchmarks run --quick                           the most telling cases of every suite, in minutes
  python -m benchmarks run --suite resnet50 --dtype bf16 --out mine.json
  python -m benchmarks report mine.json                      tables, plots and a page to look at: mine.md, mine.html, mine-*.png
  python -m benchmarks compare old.json new.json             FASTER, SLOWER, SAME or UNSURE, case by case
  python -m benchmarks choices --suite resnet50 --write      find the fastest variants, tiles and splits, for the ops' tables
  python -m benchmarks gpu --minutes 8                       on a GPU: every kernel proven, and the most telling timings
  python -m benchmarks repro 'conv2d/fprop/bf16/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1'

How it is measured, and what the numbers mean: benchmarks/README.md. Every row was compared with float64 before it was timed.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures torch-unroll beside what a user would otherwise call.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="check and time cases; writes a result file", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_choice(run)
    run.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help=f"{', '.join(NAMES)}; default: all that can run here"
    )
    run.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="NAME",
        help="eager, compile, none; default: both on a GPU, eager on a CPU",
    )
    run.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    run.add_argument(
        "--quick", action="store_true", help="few samples of each suite's most telling cases; on a CPU, of small versions of them"
    )
    run.add_argument(
        "--budget", type=float, metavar="MINUTES", help="stop in time, the most telling cases first; says what was left out"
    )
    run.add_argument("--seed", type=int, default=0, help="of the inputs (0)")
    run.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmarks.json"),
        help="result file (out/benchmarks.json); an interrupted run resumes",
    )

    choices = commands.add_parser(
        "choices",
        help="search for the fastest variant, tile and splits of each convolution; makes the table they are chosen by",
        description="Times what could compute each convolution of the suites. Without a GPU, a dry run on emulated kernels.",
    )
    _add_choice(choices)
    choices.add_argument(
        "--strategy",
        choices=("grid", "random", "halving"),
        default="halving",
        help="time all candidates, a random quarter of them, or ever fewer with ever more samples (halving)",
    )
    choices.add_argument("--budget", type=float, metavar="MINUTES", help="stop in time; the same command goes on")
    choices.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="stop a case that takes longer (120)")
    choices.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    choices.add_argument("--seed", type=int, default=0, help="of the inputs and of the random strategy (0)")
    choices.add_argument(
        "--out",
        type=Path,
        default=Path("out/choices.json"),
        help="what was measured (out/choices.json); a second run continues it",
    )
    choices.add_argument("--write", action="store_true", help="enter the best in kernels/cuda/<op>/choices.json when done")

    listing = commands.add_parser("list", aliases=["suites"], help="the suites, or the cases of some")
    _add_choice(listing)

    report = commands.add_parser("report", help="tables, plots and an HTML page from result files")
    report.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: those of benchmarks/results/")
    report.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; default: beside the first file")
    report.add_argument("--readme", action="store_true", help="rewrite the measured part of the repository's README.md instead")

    compare = commands.add_parser(
        "compare",
        help="what became faster or slower between two result files",
        description="Exit status: 0 nothing became slower, 1 something did, 2 not comparable.",
    )
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)

    repro = commands.add_parser("repro", help="print a standalone script of one case")
    repro.add_argument("case", help="a case's name, as `list` and the reports show it")
    repro.add_argument("--engine", default="cuda", help=f"{', '.join(NAMES)} (cuda)")

    bench = commands.add_parser("bench", help="what `make bench` runs: check every op, time some, train two small networks")
    bench.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where bench.json and bench.png go (out)")

    commands.add_parser(
        "gpu", help="prove and measure everything on a GPU within minutes: exact, ceilings, timings", add_help=False
    )
    commands.add_parser("microbench", help="latencies and bandwidths of the GPU itself (benchmarks/first_light)", add_help=False)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    for option, known, what in (
        ("suite", list(SUITES), "suites"),
        ("op", list(OPERATIONS), "ops"),
        ("dtype", list(DTYPES), "dtypes; default: bf16 and tf32 on a GPU, fp32 on a CPU"),
        ("layout", list(LAYOUTS), "layouts of images; default: both on a GPU, nchw on a CPU"),
        ("direction", list(DIRECTIONS), "directions; default: the suite's"),
    ):
        parser.add_argument(
            f"--{option}", action="append", default=[], metavar="NAME", help=f"{what} ({', '.join(known)}); repeatable"
        )
    parser.add_argument("--case", metavar="REGEX", help="only cases whose name this matches anywhere")


def selection(arguments: argparse.Namespace, device: torch.device) -> list[Selected]:
    """The cases that the options choose."""
    on_gpu = device.type == "cuda"
    dtypes = [find("dtype", each, list(DTYPES)) for each in arguments.dtype] or (["bf16", "tf32"] if on_gpu else ["fp32"])
    layouts = [find("layout", each, LAYOUTS) for each in arguments.layout] or (["channels_last", "nchw"] if on_gpu else ["nchw"])
    ops = [find("op", each, list(OPERATIONS)) for each in arguments.op]
    directions = [find("direction", each, DIRECTIONS) for each in arguments.direction]
    suites = [find("suite", each, list(SUITES)) for each in arguments.suite] or list(SUITES)
    cases = select(suites, dtypes, layouts, ops, directions)
    if arguments.case:
        try:
            pattern = re.compile(arguments.case)
        except re.error as problem:
            raise ValueError(f"--case: {arguments.case!r} is not a regular expression: {problem}") from problem
        known = [each.case.key for each in cases]
        cases = [each for each in cases if pattern.search(each.case.key)]
        if not cases:
            find("case", arguments.case, known)
    if not cases:
        raise ValueError(
            "no case of these suites has these ops, directions and layouts; `python -m benchmarks list` shows what they have"
        )
    return cases


#: Cases of each suite in a quick run.
QUICK_CASES = 6


def quick(cases: list[Selected], shrink: bool) -> list[Selected]:
    """The most telling cases of each suite, shrunk for a CPU."""
    chosen: dict[str, Selected] = {}
    taken: dict[str, int] = {}
    for selected in telling(cases):
        suite = selected.suites[0]
        if taken.get(suite, 0) < QUICK_CASES:
            case = selected.case.shrunk() if shrink else selected.case
            if case.key not in chosen:
                taken[suite] = taken.get(suite, 0) + 1
            chosen.setdefault(case.key, Selected(case, selected.suites, selected.labels))
    return list(chosen.values())


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; `python -m torch_unroll doctor` says why")
    # Asking for the current device would make a CUDA context, which a process that has others measure must not have.
    return torch.device("cuda", 0) if name != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def _engines(given: Sequence[str], device: torch.device) -> tuple[str, ...]:
    if given:
        return tuple(find("engine", each, NAMES) for each in given)
    return tuple(name for name in NAMES if refusal(name, "conv2d", device, torch.float32) is None)


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.measure import Setting
    from benchmarks.runner import Run
    from benchmarks.timing import QUICK, Limits

    device = _device(arguments.device)
    cases = selection(arguments, device)
    if arguments.quick:
        cases = quick(cases, shrink=device.type == "cpu")
    elif arguments.budget is not None:
        cases = telling(cases)
    baselines = [find("baseline", each, (*BASELINES, "none")) for each in arguments.baseline]
    if not baselines:
        baselines = list(BASELINES) if device.type == "cuda" else ["eager"]
    setting = Setting(
        device,
        _engines(arguments.engine, device),
        tuple(each for each in baselines if each != "none"),
        QUICK if arguments.quick else Limits(),
        arguments.seed,
    )
    run = Run(
        cases,
        setting,
        arguments.out,
        shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        arguments.budget,
        arguments.quick,
    )
    document = run.go()
    from benchmarks.report.tables import summary

    print(summary(document))
    print(f"\nwritten: {arguments.out}; tables, plots and a page: python -m benchmarks report {arguments.out}")
    return 0


def _choices(arguments: argparse.Namespace) -> int:
    from benchmarks.tuning.problem import OPS, distinct
    from benchmarks.tuning.search import Search
    from benchmarks.tuning.table import require_gpu, summary, write

    device = _device(arguments.device)
    if arguments.write:
        require_gpu(device)
    if not arguments.limit > 0:
        raise ValueError(f"--limit: expected a number of seconds above 0, got {arguments.limit:g}")
    if untuned := [op for op in arguments.op if op in OPERATIONS and op not in OPS]:
        raise ValueError(f"--op: expected an op that has variants to choose from ({', '.join(OPS)}), got {', '.join(untuned)}")
    arguments.op = arguments.op or list(OPS)
    cases = distinct([selected.case for selected in telling(selection(arguments, device))])
    if device.type == "cpu":
        cases = list({case.key: case for case in (case.shrunk() for case in cases)}.values())
    search = Search(cases, device, arguments.strategy, arguments.out, arguments.budget, arguments.seed, arguments.limit)
    document = search.go()
    print(summary(document))
    if arguments.write:
        print(write(document))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    if not any((arguments.suite, arguments.op, arguments.case, arguments.direction)):
        width = max(map(len, SUITES))
        for suite in SUITES.values():
            print(f"{suite.name:<{width}}  {len(suite.entries):>4} shapes  {suite.about}")
        return 0
    for selected in selection(arguments, _device(None)):
        more = f" and {len(selected.labels) - 1} more" if len(selected.labels) > 1 else ""
        print(f"{selected.case.key}  {selected.labels[0]}{more}" if selected.labels else selected.case.key)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from benchmarks import report
    from benchmarks.report import readme

    if arguments.readme:
        readme.rewrite()
        return 0
    files = arguments.files or readme.files()
    if not files:
        print("no result files; measure first: python -m benchmarks run --out FILE", file=sys.stderr)
        return 2
    for path in report.write([results.load(each) for each in files], arguments.out or files[0].parent, files[0].stem):
        print(path)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from benchmarks.compare import compare

    return compare(results.load(arguments.old), results.load(arguments.new))


def _repro(arguments: argparse.Namespace) -> int:
    from benchmarks.repro import script

    print(script(parse(arguments.case), find("engine", arguments.engine, NAMES)), end="")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from benchmarks.bench import bench

    return bench(arguments.out, _device(None))


_COMMANDS = {
    "run": _run,
    "choices": _choices,
    "list": _list,
    "suites": _list,
    "report": _report,
    "compare": _compare,
    "repro": _repro,
    "bench": _bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    arguments, rest = _parser().parse_known_args(argv)
    try:
        if arguments.command == "microbench":
            from benchmarks.microbench import microbench

            return microbench(rest)
        if arguments.command == "gpu":
            from benchmarks.gpu.command import main as gpu

            return gpu(rest)
        if rest:
            _parser().error(f"unrecognized arguments: {' '.join(rest)}")
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as problem:
        print(f"python -m benchmarks: {problem}", file=sys.stderr)
        return 2
