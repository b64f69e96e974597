"""Calls in separate processes, so that a call that hangs, crashes or loses the GPU affects no other.

The processes are forked from a server that has imported torch and never touches CUDA, so starting one takes milliseconds.
The server starts with the first call and keeps the environment variables of that moment. A function and its arguments must be
picklable, and the function has to write its results to a file.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Literal

#: Seconds to wait for the end of a killed process; the driver may take long to remove an endless kernel from the GPU.
_SECONDS_TO_DIE = 10.0
_LONGEST_DETAIL = 500

Kind = Literal["ended", "hung", "crashed", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a call ended: normally (ended), not within its limit (hung), by a signal (crashed), by an exception or with an exit
    status other than 0 (failed), or by the deadline of all calls (stopped)."""

    kind: Kind
    detail: str
    seconds: float


@dataclass(frozen=True)
class Job:
    """A call, the seconds that it may take, and the file for its output, whose folders are created."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    limit: float
    output: Path


def run(function: Callable[..., object], arguments: tuple[Any, ...], *, limit: float, output: Path) -> Outcome:
    """Calls a function in a separate process, which is killed with its children after `limit` seconds. Its output is written to
    the file `output` line by line."""
    ((_, outcome),) = run_all([Job(function=function, arguments=arguments, limit=limit, output=output)])
    return outcome


def run_all(jobs: Iterable[Job], processes: int = 1, deadline: float | None = None) -> Iterator[tuple[Job, Outcome]]:
    """Starts jobs in order, runs up to `processes` at once, and yields each job with its outcome when it ends.

    At the deadline, a time of `time.monotonic()`, running jobs are killed, and all unfinished jobs are yielded as stopped.
    Running jobs are also killed when the iterator is closed or interrupted by Ctrl-C. Limits and the deadline are enforced
    only while the caller waits for the next outcome.
    """
    waiting, running = deque(jobs), list[_Running]()
    try:
        while waiting or running:
            if deadline is not None and time.monotonic() >= deadline:
                while running:
                    process = running.pop()
                    yield process.job, process.kill("stopped", "stopped at the deadline")
                yield from ((job, Outcome("stopped", "not begun before the deadline", 0.0)) for job in waiting)
                return
            while waiting and len(running) < processes:
                running.append(_Running(waiting.popleft()))
            until = min(process.until for process in running)
            until = until if deadline is None else min(until, deadline)
            connection.wait([process.sentinel for process in running], max(0.0, until - time.monotonic()))
            for process in list(running):
                if outcome := process.outcome():
                    running.remove(process)
                    yield process.job, outcome
    finally:
        for process in running:
            process.kill("stopped", "interrupted")


_preloaded = ["torch"]


def preload(*modules: str) -> None:
    """Adds modules for the server to import, so that no process has to.

    They must not touch CUDA, and have to be named before the first call.
    """
    _preloaded.extend(modules)


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded)
    first = context.Process(target=_nothing)  # waits for the imports, so that they do not count as time of a job
    first.start()
    first.join()
    return context


def _nothing() -> None:
    pass


class _Running:
    """A job that has started."""

    def __init__(self, job: Job):
        context = _context()
        job.output.parent.mkdir(parents=True, exist_ok=True)
        self.job = job
        self._report, report = context.Pipe(duplex=False)
        self._began = time.monotonic()
        self.until = self._began + job.limit
        self._process = context.Process(target=_child, args=(job, self.until, report))
        self._process.start()
        report.close()
        self.sentinel = self._process.sentinel

    def outcome(self) -> Outcome | None:
        """The outcome of the job, which is killed once its limit is over; None while it runs within its limit."""
        if (status := self._process.exitcode) is None:
            late = time.monotonic() >= self.until
            return self.kill("hung", f"no end within {self.job.limit:g} s") if late else None
        seconds = time.monotonic() - self._began
        self._end_group()  # kills children that outlive the process
        if status < 0:
            return Outcome("crashed", _signal(-status), seconds)
        if status > 0:
            return Outcome("failed", self._error() or f"exit status {status}", seconds)
        return Outcome("ended", "", seconds)

    def kill(self, kind: Kind, detail: str) -> Outcome:
        seconds = time.monotonic() - self._began
        self._end_group()
        self._process.kill()  # a process that has only just started does not have its own group yet
        self._process.join(_SECONDS_TO_DIE)
        if self._process.exitcode is None:
            detail += f", nor within {_SECONDS_TO_DIE:g} s of being killed"
        return Outcome(kind, detail, seconds)

    def _end_group(self) -> None:
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _error(self) -> str:
        with suppress(EOFError):
            if self._report.poll():
                return str(self._report.recv())
        return ""


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.killpg(0, signal.SIGKILL)


def _child(job: Job, until: float, report: connection.Connection) -> None:
    """The process of a job: calls the function in a new session and redirects its output to the job's file."""
    os.setsid()
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    file = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, errors="backslashreplace", closefd=False) for n in (1, 2))
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.9 * (until - time.monotonic()), 0.01))  # shows where the function hangs
    try:
        job.function(*job.arguments)
    except Exception as error:
        traceback.print_exc()
        report.send(f"{type(error).__name__}: {error}"[:_LONGEST_DETAIL])
        sys.exit(1)
    finally:
        faulthandler.cancel_dump_traceback_later()
