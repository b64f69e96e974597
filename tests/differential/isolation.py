"""A process beside the tests' own, for cases that may end it: a crash is then a failure like any other.

Runs as `python -m tests.differential.isolation`: a case a line on its input, a verdict a line on its output.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import asdict, astuple
from pathlib import Path

import torch

from tests.differential.harness import Case, Verdict, judge

_process: subprocess.Popen[str] | None = None


def _started() -> subprocess.Popen[str]:
    """The process, started if there is none."""
    global _process
    if _process is None:
        _process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        atexit.register(_process.kill)
    return _process


def judge_apart(case: Case) -> Verdict:
    """Runs a case in the other process."""
    global _process
    process = _started()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(astuple(case)) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if answer:
        return Verdict(**json.loads(answer))
    status, _process = process.wait(), None
    return Verdict(f"{case} ended the process with status {status}, where torch's own exception was expected or its result", None)


def main() -> None:
    """Answers until the input ends. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(judge(Case(*json.loads(line))))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
