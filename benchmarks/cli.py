"""The commands of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.bench import bench
from benchmarks.compare import compare
from benchmarks.gpu.command import main as gpu
from benchmarks.measure import Setting
from benchmarks.microbench import microbench
from benchmarks.names import DIRECTIONS, DTYPES, LAYOUTS, find
from benchmarks.ops import OPERATIONS, parse
from benchmarks.overhead.command import main as overhead
from benchmarks.providers import BASELINES
from benchmarks.report import readme
from benchmarks.report.files import write
from benchmarks.report.tables import summary
from benchmarks.repro import script
from benchmarks.runner import Run
from benchmarks.suites import SUITES, Selected, quick, select, telling
from benchmarks.timing import QUICK, Limits
from benchmarks.tuning import table
from benchmarks.tuning.problem import OPS, distinct
from benchmarks.tuning.search import Search
from benchmarks.tuning.strategies import STRATEGIES
from torch_unroll.engines import NAMES, refusal

_EXAMPLES = """\
Start here:
  python -m benchmarks list                                  the suites; `list --suite resnet50` shows a suite's cases
  python -m benchmarks run --quick                           the most telling cases of every suite, in minutes
  python -m benchmarks run --suite resnet50 --dtype bf16 --out mine.json
  python -m benchmarks report mine.json                      tables, plots and a page to look at: mine.md, mine.html, mine-*.png
  python -m benchmarks compare old.json new.json             FASTER, SLOWER, SAME or UNSURE, case by case
  python -m benchmarks choices --suite resnet50 --write      find the fastest variants, tiles and splits, for the ops' tables
  python -m benchmarks gpu --minutes 8                       on a GPU: check every kernel, and time the most telling cases
  python -m benchmarks overhead                              the host time of a call, beside torch's; needs no GPU
  python -m benchmarks repro 'conv2d/fprop/bf16/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1'

Every result is compared with float64 before it is timed. benchmarks/README.md says how cases are measured.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compares torch-unroll with what a user would otherwise call.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_choices(commands)
    _add_selection(commands.add_parser("list", aliases=["suites"], help="list the suites, or the cases of some"))
    _add_result_commands(commands)
    command = commands.add_parser("bench", help="check every op, time some cases, train two small networks (`make bench`)")
    command.add_argument(
        "--out", type=Path, default=Path("out"), metavar="FOLDER", help="folder of bench.json and bench.png (out)"
    )
    commands.add_parser("gpu", help="check and measure everything on a GPU within minutes", add_help=False)
    commands.add_parser("overhead", help="measure what a call costs on the host; needs no GPU", add_help=False)
    commands.add_parser("microbench", help="measure the GPU itself (benchmarks/first_light)", add_help=False)
    return parser


def _add_run(commands: Any) -> None:
    command = commands.add_parser("run", help="check and time cases; writes a result file")
    _add_selection(command)
    _add_list(command, "engine", f"{', '.join(NAMES)}; default: all that can run here")
    _add_list(command, "baseline", "eager, compile, none; default: both on a GPU, eager on a CPU")
    _add_device(command)
    command.add_argument(
        "--quick", action="store_true", help="few samples of each suite's most telling cases; on a CPU, of small versions of them"
    )
    command.add_argument(
        "--budget", type=float, metavar="MINUTES", help="stop in time, the most telling cases first; reports what was left out"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the inputs (0)")
    help_ = "result file (out/benchmarks.json); an interrupted run resumes"
    command.add_argument("--out", type=Path, default=Path("out/benchmarks.json"), help=help_)


def _add_choices(commands: Any) -> None:
    command = commands.add_parser(
        "choices",
        help="search for the fastest variant, tile and splits of each problem, and write the ops' tables of measurements",
        description="Times every way to compute the convolutions, poolings and recurrences of the suites. "
        "Without a GPU, it is a dry run on the emulator.",
    )
    _add_selection(command, ops=OPS)
    command.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="halving",
        help="time all candidates, a random quarter of them, or ever fewer with ever more samples (halving)",
    )
    command.add_argument("--budget", type=float, metavar="MINUTES", help="stop in time; the same command continues")
    command.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="stop a case that takes longer (120)")
    _add_device(command)
    command.add_argument("--seed", type=int, default=0, help="seed of the inputs and of the random strategy (0)")
    help_ = "file of the measurements (out/choices.json); a second run continues it"
    command.add_argument("--out", type=Path, default=Path("out/choices.json"), help=help_)
    command.add_argument("--write", action="store_true", help="finally write the best to kernels/cuda/<op>/choices.json")


def _add_result_commands(commands: Any) -> None:
    command = commands.add_parser("report", help="tables, plots and an HTML page from result files")
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: those of benchmarks/results/")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the report; default: that of the first file")
    command.add_argument("--readme", action="store_true", help="rewrite the measured part of the repository's README.md instead")

    command = commands.add_parser(
        "compare",
        help="what became faster or slower between two result files",
        description="Exit status: 0 nothing became slower, 1 something did, 2 not comparable.",
    )
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)

    command = commands.add_parser("repro", help="print a standalone script of one case")
    command.add_argument("case", help="a case's name, as `list` and the reports show it")
    command.add_argument("--engine", default="cuda", help=f"{', '.join(NAMES)} (cuda)")


def _add_list(parser: argparse.ArgumentParser, option: str, help: str) -> None:
    parser.add_argument(f"--{option}", action="append", default=[], metavar="NAME", help=help)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")


def _add_selection(parser: argparse.ArgumentParser, ops: Sequence[str] = tuple(OPERATIONS)) -> None:
    for option, known, what in (
        ("suite", list(SUITES), "suites"),
        ("op", list(ops), "ops"),
        ("dtype", list(DTYPES), "dtypes; default: bf16 and tf32 on a GPU, fp32 on a CPU"),
        ("layout", list(LAYOUTS), "layouts of images; default: both on a GPU, nchw on a CPU"),
        ("direction", list(DIRECTIONS), "directions; default: the suite's"),
    ):
        _add_list(parser, option, f"{what} ({', '.join(known)}); repeatable")
    help_ = "only cases whose name this matches anywhere, such as H=4,W=4; `list` shows the names"
    parser.add_argument("--case", metavar="REGEX", help=help_)


def selection(arguments: argparse.Namespace, device: torch.device) -> list[Selected]:
    """The cases that the options select.

    Raises:
        ValueError: an option names something unknown, `--case` is not a regular expression, or nothing is selected.
    """
    on_gpu = device.type == "cuda"

    def known(option: str, names: Sequence[str]) -> list[str]:
        return [find(option, name, names) for name in getattr(arguments, option)]

    dtypes = known("dtype", list(DTYPES)) or (["bf16", "tf32"] if on_gpu else ["fp32"])
    layouts = known("layout", LAYOUTS) or (["channels_last", "nchw"] if on_gpu else ["nchw"])
    ops = known("op", list(OPERATIONS))
    directions = known("direction", DIRECTIONS)
    suites = known("suite", list(SUITES)) or list(SUITES)
    cases = select(suites, dtypes, layouts, ops, directions)
    if arguments.case:
        try:
            pattern = re.compile(arguments.case)
        except re.error as error:
            raise ValueError(f"--case: {arguments.case!r} is not a regular expression: {error}") from error
        keys = [selected.case.key for selected in cases]
        cases = [selected for selected in cases if pattern.search(selected.case.key)]
        if not cases:
            find("case", arguments.case, keys)
    if not cases:
        raise ValueError(
            "no case of these suites has these ops, directions and layouts; `python -m benchmarks list` shows what they have"
        )
    return cases


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; `python -m torch_unroll doctor` says why")
    # Asking for the current device would create a CUDA context, which a process must not have if it starts others to measure.
    return torch.device("cuda", 0) if name != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def _engines(names: Sequence[str], device: torch.device) -> tuple[str, ...]:
    if names:
        return tuple(find("engine", name, NAMES) for name in names)
    return tuple(name for name in NAMES if refusal(name, "conv2d", device, torch.float32) is None)


def _run(arguments: argparse.Namespace) -> int:
    device = _device(arguments.device)
    cases = selection(arguments, device)
    if arguments.quick:
        cases = quick(cases, shrink=device.type == "cpu")
    elif arguments.budget is not None:
        cases = telling(cases)
    baselines = [find("baseline", name, (*BASELINES, "none")) for name in arguments.baseline]
    if not baselines:
        baselines = list(BASELINES) if device.type == "cuda" else ["eager"]
    setting = Setting(
        device=device,
        engines=_engines(arguments.engine, device),
        baselines=tuple(name for name in baselines if name != "none"),
        limits=QUICK if arguments.quick else Limits(),
        seed=arguments.seed,
    )
    run = Run(
        cases=cases,
        setting=setting,
        out=arguments.out,
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        minutes=arguments.budget,
        quick=arguments.quick,
    )
    print(summary(run.go()))
    print(f"\nwritten: {arguments.out}; tables, plots and a page: python -m benchmarks report {arguments.out}")
    return 0


def _choices(arguments: argparse.Namespace) -> int:
    device = _device(arguments.device)
    if arguments.write:
        table.require_gpu(device)
    if not arguments.limit > 0:
        raise ValueError(f"--limit: expected a number of seconds above 0, got {arguments.limit:g}")
    if untuned := [op for op in arguments.op if op in OPERATIONS and op not in OPS]:
        raise ValueError(f"--op: expected an op that has variants to choose from ({', '.join(OPS)}), got {', '.join(untuned)}")
    arguments.op = arguments.op or list(OPS)
    cases = distinct([selected.case for selected in telling(selection(arguments, device))])
    if device.type == "cpu":
        cases = list({case.key: case for case in (case.shrunk() for case in cases)}.values())
    search = Search(
        cases=cases,
        device=device,
        strategy=arguments.strategy,
        out=arguments.out,
        minutes=arguments.budget,
        seed=arguments.seed,
        limit=arguments.limit,
    )
    document = search.go()
    print(table.summary(document))
    if arguments.write:
        print(table.write(document))
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
    if arguments.readme:
        readme.rewrite()
        return 0
    files = arguments.files or readme.files()
    if not files:
        print("no result files; measure first: python -m benchmarks run --out FILE", file=sys.stderr)
        return 2
    for path in write([results.load(file) for file in files], arguments.out or files[0].parent, files[0].stem):
        print(path)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    return compare(results.load(arguments.old), results.load(arguments.new))


def _repro(arguments: argparse.Namespace) -> int:
    print(script(parse(arguments.case), find("engine", arguments.engine, NAMES)), end="")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
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
#: The commands that parse their own arguments.
_DELEGATED = {"microbench": microbench, "gpu": gpu, "overhead": overhead}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments, rest = _parser().parse_known_args(argv)
    try:
        if arguments.command in _DELEGATED:
            return _DELEGATED[arguments.command](rest)
        if rest:
            _parser().error(f"unrecognized arguments: {' '.join(rest)}")
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
