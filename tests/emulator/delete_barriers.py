"""Checks that the kernels need their barriers and that the tests notice when one is missing.

    python tests/emulator/delete_barriers.py [op ...]

Deletes each barrier, wait, fence, arrival or commit that the pattern BARRIER matches, one at a time, builds the op's kernels in
race mode and runs quick_cases.py, which must fail. If it passes, the barrier must be listed in REDUNDANT. The call
`__syncthreads_or(vote)` is replaced by `(vote)`, the thread's own vote.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "pyext")]

from torch_unroll.kernels import SOURCES  # noqa: E402
from torch_unroll.kernels.build import BUILD, build  # noqa: E402
from torch_unroll.kernels.table import OPS, kernels  # noqa: E402

BARRIER = re.compile(
    r"\b(?:__syncthreads|__syncwarp|cluster_sync|cluster_wait|barrier_sync|mbarrier_wait|mbarrier_init_fence|wgmma_fence"
    r"|mbarrier_arrive|mbarrier_arrive_expect|copy_async_commit|wgmma_commit"
    r"|(?:copy_async|wgmma)_wait<[^<>()]*>|(?P<vote>__syncthreads_or))"
    r"(?P<arguments>\((?:[^()]|\([^()]*\))*\))"
)

#: Barriers whose loss the emulator cannot notice: (file, source line without its comment) -> why the barrier is there.
REDUNDANT: dict[tuple[str, str], str] = {
    ("rnn/persistent.cuh", "__syncwarp();"): "reconverges lanes that have polled separately, as a GPU's mma.sync requires; "
    "the emulator's mma.sync waits for all lanes",
    ("conv2d/wgmma.cuh", "mbarrier_init_fence();"): "makes mbarriers visible to the asynchronous copies, which read them "
    "coherently on the emulator",
    ("rnn/cluster.cuh", "mbarrier_init_fence();"): "makes mbarriers visible to the other blocks' asynchronous stores, which read "
    "them coherently on the emulator",
}

_MINUTES_PER_RUN = 5


@dataclass(frozen=True)
class Site:
    """One barrier in a source file."""

    file: str  # relative to kernels/cuda
    line: int
    start: int  # offsets in the text of the file
    end: int
    rest: str  # the code that replaces the barrier
    text: str  # the line without its comment


def sites(op: str) -> Iterator[Site]:
    """Yields the matches of BARRIER in the sources of an op, except those in comments."""
    for path in sorted((SOURCES / op).glob("*.cuh")):
        text = path.read_text()
        for match in BARRIER.finditer(text):
            line_start = text.rfind("\n", 0, match.start()) + 1
            if "//" in text[line_start : match.start()]:
                continue
            line = text[line_start : text.index("\n", match.end())].split("//")[0].strip()
            yield Site(
                file=f"{op}/{path.name}",
                line=text.count("\n", 0, match.start()) + 1,
                start=match.start(),
                end=match.end(),
                rest=match["arguments"] if match["vote"] else "",
                text=line,
            )


class Mutants:
    """Builds one op's kernels from a copy of its sources in which one barrier at a time is deleted."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.directory = BUILD / f"delete-barriers-{op}"
        self.copy = self.directory / "sources"
        shutil.rmtree(self.copy / op, ignore_errors=True)
        shutil.copytree(SOURCES / op, self.copy / op, ignore=shutil.ignore_patterns("__pycache__"))
        # The quick cases of rnn need kernels of conv2d: a recurrence multiplies its input by W_ih as a 1x1 convolution.
        self.rows = list(kernels(op) + (kernels("conv2d") if op == "rnn" else ()))

    def run(self) -> subprocess.CompletedProcess[str]:
        """Builds the copy of the sources and runs the quick cases on it."""
        library = self.directory / f"{self.op}.so"
        build("emulated", self.rows, library, mode="race", directory=self.directory, include=[self.copy])
        environment = os.environ | {
            "TORCH_UNROLL_EMULATED": str(library),
            "PYTHONPATH": str(ROOT / "pyext"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("quick_cases.py")), self.op]
        try:
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * _MINUTES_PER_RUN)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"did not end within {_MINUTES_PER_RUN} minutes")

    def keep_only_launched(self, names: set[str]) -> None:
        """Speeds up later builds by restricting them to these kernels."""
        self.rows = [row for row in self.rows if row.expression in names]

    def without(self, site: Site) -> subprocess.CompletedProcess[str]:
        """Runs the quick cases without one barrier."""
        path = self.copy / site.file
        text = path.read_text()
        path.write_text(text[: site.start] + site.rest + text[site.end :])
        try:
            return self.run()
        finally:
            path.write_text(text)


NOTICED = re.compile(
    r"(race on|deadlock|outside of|the results differ|threads of one block|of the cluster has|it is not initialised"
    r"|more arrivals than|D was written|without wgmma_fence|no wgmma_wait|no wgmma_commit).*|did not end.*"
)


def reason(result: subprocess.CompletedProcess[str]) -> str | None:
    """The part of the output that reports the missing barrier; None if the quick cases pass.

    Raises:
        RuntimeError: the quick cases fail for another reason.
    """
    if not result.returncode:
        return None
    for line in reversed(result.stderr.splitlines()):
        if match := NOTICED.search(line):
            return match[0]
    raise RuntimeError(f"the quick cases fail for another reason than a missing barrier:\n{result.stderr}")


def check(op: str) -> list[str]:
    """Prints a line for each barrier and returns the lines that contradict REDUNDANT.

    If the quick cases report a missing barrier although every barrier is in place, returns only a line with that report.
    """
    mutants = Mutants(op)
    intact = mutants.run()
    if failure := reason(intact):
        return [f"{op}: the quick cases fail with every barrier in place: {failure}"]
    mutants.keep_only_launched(set(intact.stdout.splitlines()))
    wrong = []
    for site in sites(op):
        result = mutants.without(site)
        listed = REDUNDANT.get((site.file, site.text))
        noticed = reason(result)
        text = f"{site.file}:{site.line}: {site.text}  {noticed or 'not noticed'}" + (f" (listed: {listed})" if listed else "")
        print(text, flush=True)
        if bool(noticed) == bool(listed):
            wrong.append(text)
    return wrong


if __name__ == "__main__":
    unexpected = [line for op in sys.argv[1:] or OPS for line in check(op)]
    sys.exit("\n".join(["", *unexpected]) if unexpected else 0)
