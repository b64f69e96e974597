"""Separate processes for cases that may crash, so that a crash is reported as a failed case.

`python -m tests.differential.isolation` reads one case from each line of its input, and writes one verdict per line.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import asdict, astuple
from importlib import import_module
from pathlib import Path

import torch

from tests.differential.harness import Case, Verdict, judge


class Apart:
    """A process that judges cases; it is started for the first case, and again after a crash."""

    def __init__(self, *modules: str):
        """The process imports `modules` before the first case; they may plant faults."""
        self.modules = modules
        self.process: subprocess.Popen[str] | None = None

    def _started(self) -> subprocess.Popen[str]:
        """The process, which is started if it is not running."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, *self.modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            atexit.register(self.process.kill)
        return self.process

    def judge(self, case: Case) -> Verdict:
        """Runs a case in the process."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(astuple(case)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            return Verdict(**json.loads(answer))
        status, self.process = process.wait(), None
        return Verdict(
            f"{case} ended the process with status {status}, where torch's own exception was expected or its result", None
        )

    def end(self) -> None:
        """Ends the process if it is running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


#: Runs a case in the separate process that all tests share.
judge_apart = Apart().judge


def main() -> None:
    """Judges cases until the input ends. All other output is redirected to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for module in sys.argv[1:]:
        import_module(module)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(judge(Case(*json.loads(line))))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
