"""Measures which lines of kernels/cuda and which rows of the kernel table the tests run.

Lines of platform/ do not count, because the emulator replaces most of its headers.

    python tests/emulator/line_coverage.py [--threshold PERCENT] [-n WORKERS] [options and files for pytest]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "pyext")]

from torch_unroll.kernels import SOURCES  # noqa: E402
from torch_unroll.kernels.build import BUILD, build, library_path  # noqa: E402
from torch_unroll.kernels.table import kernels  # noqa: E402

DIRECTORY = BUILD / "emulated-coverage"
LAUNCHED = DIRECTORY / "launched"
TESTS = ("tests/conv2d", "tests/max_pool2d", "tests/rnn", "tests/engines/test_kernel_rows.py")


def run_tests(library: Path, arguments: list[str]) -> int:
    """Runs pytest on the instrumented library and returns its exit status."""
    for stale in DIRECTORY.glob("*.gcda"):
        stale.unlink()
    shutil.rmtree(LAUNCHED, ignore_errors=True)
    LAUNCHED.mkdir()
    environment = os.environ | {
        "TORCH_UNROLL_EMULATED": str(library),
        "LAUNCHED_KERNELS": str(LAUNCHED),
        "PYTHONPATH": f"{ROOT / 'pyext'}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "line_coverage_plugin", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


def line_counts() -> dict[str, dict[int, int]]:
    """File, relative to kernels/cuda -> line -> how often it ran, summed over the instantiations of templates."""
    counts: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for notes in sorted(DIRECTORY.glob("*.gcno")):
        if not notes.with_suffix(".gcda").exists():  # no process wrote counts of this code
            continue
        command = ["gcov", "--json-format", "--stdout", notes.name]
        report = subprocess.run(command, cwd=DIRECTORY, capture_output=True, text=True, check=True).stdout
        for document in report.splitlines():
            for file in json.loads(document)["files"]:
                path = Path(file["file"]).resolve()
                if not path.is_relative_to(SOURCES) or path.is_relative_to(SOURCES / "platform"):
                    continue
                lines = counts[str(path.relative_to(SOURCES))]
                for line in file["lines"]:
                    number = line["line_number"]
                    lines[number] = lines.get(number, 0) + line["count"]
    return counts


def ranges(numbers: list[int]) -> str:
    """Turns [3, 4, 5, 9] into "3-5, 9"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def report(threshold: float) -> bool:
    """Prints the coverage; returns whether the percentage of lines reaches the threshold and every row of the
    kernel table was launched."""
    covered = total = 0
    for file, lines in sorted(line_counts().items()):
        missed = sorted(number for number, count in lines.items() if not count)
        covered, total = covered + len(lines) - len(missed), total + len(lines)
        print(f"{100 * (1 - len(missed) / len(lines)):6.1f}%  {file}" + (f"  not run: {ranges(missed)}" if missed else ""))
    percent = 100 * covered / max(total, 1)
    print(f"{percent:6.1f}%  of {total} lines of kernels/cuda")
    launched = {name for path in LAUNCHED.iterdir() for name in path.read_text().splitlines()}
    rows = [row.expression for row in kernels()]
    absent = [row for row in rows if row not in launched]
    print(f"{len(rows) - len(absent)} of {len(rows)} rows of the kernel table launched", *absent, sep="\n  never launched: ")
    return percent >= threshold and not absent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threshold", type=float, default=95)
    parser.add_argument("-n", default="0", help="processes of pytest-xdist")
    parser.add_argument("tests", nargs="*", default=TESTS, help="files and folders for pytest; by default the ops' tests")
    options, more = parser.parse_known_args()
    rows = list(kernels())
    object_ = build("emulated", rows, library_path("emulated", "coverage"), mode="coverage", directory=DIRECTORY)
    failed = run_tests(object_, ["-n", options.n, *more, *options.tests])
    sys.exit(0 if report(options.threshold) and not failed else 1)
