"""`python -m benchmarks overhead`: the host time of calls, beside torch's and that of a Function that computes nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arguments import pattern
from benchmarks.overhead.rows import DIRECTIONS, select
from benchmarks.report.text import align

#: With --check, the part of a row's limit by which its ratio may exceed the limit: hosts differ, and times vary.
MARGIN = 1.25

_HELP = """\
How it is measured:
  Engine cuda is called on CPU tensors, through the tables and structs of the emulated kernels. Its launches are replaced with
  functions that do nothing, so what is left is the time of Python, torch and the C interface. No GPU is needed.
  Ours, torch's own operator on the same tensors, and an autograd Function that only allocates what ours allocates are sampled
  in turn, by the CPU time of the process; a time is the median of all rounds. On a GPU, two columns add the time for each call
  in a stream of real calls, ours and torch's.

How to read it:
  null µs        the Function: hardly any call from Python with a gradient takes less; one without needs no Function
  ours/torch     below 1, ours takes less time
  at most        what ours/torch is meant not to exceed
  launches       kernels that a call of ours launches; allocations: tensors that it allocates

  python -m benchmarks overhead                               all rows but the compiled graphs, within a minute
  python -m benchmarks overhead --only 'conv2d/.*fp32'        some rows
  python -m benchmarks overhead --prepare off --json off.json
  python -m benchmarks overhead --check                       for scripts: fails if a call has become slow

Exit status: 0; 1 with --check if a row is too slow; 2 if nothing could be measured.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks overhead",
        description="Measures what a call costs on the host.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="PATTERN", type=pattern, help="only rows whose name this regular expression matches")
    parser.add_argument("--rounds", type=_rounds, default=11, help="samples of each call, from 1 to 1000 (11)")
    parser.add_argument("--compiled", action="store_true", help="also calls in compiled graphs, which take a minute to compile")
    parser.add_argument(
        "--prepare", choices=("on", "off"), default="on", help="whether calls may be prepared: sets TORCH_UNROLL_PREPARE (on)"
    )
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the results to this file")
    parser.add_argument("--list", action="store_true", help="list the rows and their limits, and measure nothing")
    help_ = f"exit with status 1 if ours/torch exceeds {MARGIN} times the limit of its row"
    parser.add_argument("--check", action="store_true", help=help_)
    return parser


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 1000, got {text}")
    return int(text)


def limit(at_most: float | None) -> str:
    """The limit of a row in a table."""
    return "–" if at_most is None else f"{at_most:.2f}"


def _listed(options: argparse.Namespace) -> str:
    """A table of the selected rows; those of compiled graphs are listed in any case."""
    rows = [
        [row.name, DIRECTIONS[row.direction] + (" (--compiled)" if row.compiled else ""), limit(row.at_most)]
        for row in select(options.only, compiled=True)
    ]
    return align(("row", "timed", "at most"), rows, right=(2,))


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status.

    The measurement has a process of its own: the package reads its environment variables when it is imported, and remembers of
    calls what must not outlive launches that do nothing.

    Raises:
        ValueError: no row is selected.
    """
    options = make_parser().parse_args(arguments)
    if options.list:
        print(_listed(options))
        return 0
    select(options.only, options.compiled)
    environment = {
        **os.environ,
        "TORCH_UNROLL_PREPARE": "" if options.prepare == "on" else "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "benchmarks.overhead", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode
