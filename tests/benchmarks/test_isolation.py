"""Calls in separate processes: whatever a call does, the others continue, and nothing of it remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from benchmarks.isolation import Job, Outcome, run, run_all

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0


def end(said: str = "done") -> None:
    print(said)


def sleep(pid_file: Path | None = None) -> None:
    print("about to sleep")
    if pid_file:
        pid_file.write_text(str(os.getpid()))
    time.sleep(600)


def spin() -> None:
    while True:
        pass


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def die(number: int) -> None:
    print("about to die")
    os.kill(os.getpid(), number)
    time.sleep(600)


def complain(kind: type[BaseException], message: str) -> None:
    raise kind(message)


def leave(status: int) -> None:
    os._exit(status)


def have_children(pid_file: Path, then_sleep: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pid_file.write_text(f"{os.getpid()} {child.pid}")
    if then_sleep:
        child.wait()


def flood(lines: int) -> None:
    for _ in range(lines):
        print("x" * 1000)
    print("the last line", file=sys.stderr)


def claim_cuda_untouched() -> None:
    assert not torch.cuda.is_initialized()
    assert not torch.cuda._is_in_bad_fork()


def use_cuda() -> None:
    assert torch.ones(3, device="cuda").sum() == 3


def is_gone(pid: int) -> bool:
    """Whether a process ends within 20 seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_call_that_ends(tmp_path: Path) -> None:
    output = tmp_path / "folder" / "output"
    outcome = run(end, (), limit=LIMIT, output=output)
    assert (outcome.kind, outcome.detail) == ("ended", "")
    assert outcome.seconds < LIMIT
    assert output.read_text() == "done\n"


@pytest.mark.parametrize("function", [sleep, spin, ignore_signals, stop_itself])
def test_a_call_that_hangs_is_killed_at_its_limit(function: Callable[..., None], tmp_path: Path) -> None:
    outcome = run(function, (), limit=1, output=tmp_path / "output")
    assert (outcome.kind, outcome.detail) == ("hung", "no end within 1 s")
    assert 1 <= outcome.seconds < 20


def test_what_a_hanging_call_said_and_where_it_hung_is_kept(tmp_path: Path) -> None:
    run(sleep, (), limit=2, output=tmp_path / "output")
    said = (tmp_path / "output").read_text()
    assert said.startswith("about to sleep\n")
    assert "in sleep\n" in said


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS, signal.SIGTERM])
def test_a_call_that_crashes(number: signal.Signals, tmp_path: Path) -> None:
    outcome = run(die, (int(number),), limit=LIMIT, output=tmp_path / "output")
    assert (outcome.kind, outcome.detail) == ("crashed", f"signal {int(number)} ({number.name})")
    assert (tmp_path / "output").read_text().startswith("about to die\n")


@pytest.mark.parametrize(
    ("kind", "message", "detail"),
    [
        (ValueError, "no luck", "ValueError: no luck"),
        (
            RuntimeError,
            "CUDA error: an illegal memory access\nCompile with TORCH_USE_CUDA_DSA",
            "RuntimeError: CUDA error: an il",
        ),
        (torch.OutOfMemoryError, "much", "OutOfMemoryError: much"),
        (AssertionError, "", "AssertionError: "),
        (RuntimeError, "x" * 10**6, "RuntimeError: xxx"),
        (KeyboardInterrupt, "", "exit status 1"),
    ],
)
def test_a_call_that_fails(kind: type[BaseException], message: str, detail: str, tmp_path: Path) -> None:
    outcome = run(complain, (kind, message), limit=LIMIT, output=tmp_path / "output")
    assert outcome.kind == "failed"
    assert outcome.detail.startswith(detail)
    assert len(outcome.detail) <= 500
    assert kind.__name__ in (tmp_path / "output").read_text()


@pytest.mark.parametrize("status", [1, 3, 77])
def test_a_call_that_leaves_with_a_status(status: int, tmp_path: Path) -> None:
    outcome = run(leave, (status,), limit=LIMIT, output=tmp_path / "output")
    assert (outcome.kind, outcome.detail) == ("failed", f"exit status {status}")


@pytest.mark.parametrize(("then_sleep", "kind"), [(True, "hung"), (False, "ended")])
def test_children_of_a_call_end_with_it(then_sleep: bool, kind: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    assert run(have_children, (pids, then_sleep), limit=2, output=tmp_path / "output").kind == kind
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


def test_a_flood_of_output_blocks_nothing(tmp_path: Path) -> None:
    assert run(flood, (20_000,), limit=LIMIT, output=tmp_path / "output").kind == "ended"
    lines = (tmp_path / "output").read_text().splitlines()
    assert len(lines) == 20_001
    assert lines[-1] == "the last line"


def test_a_second_call_costs_no_import_of_torch(tmp_path: Path) -> None:
    run(end, (), limit=LIMIT, output=tmp_path / "output")
    for _ in range(3):
        assert run(claim_cuda_untouched, (), limit=LIMIT, output=tmp_path / "output").kind == "ended"
    seconds = min(run(claim_cuda_untouched, (), limit=LIMIT, output=tmp_path / "output").seconds for _ in range(3))
    fresh = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert seconds < (time.monotonic() - fresh) / 2


def test_many_at_once_come_as_they_end_and_none_harms_another(tmp_path: Path) -> None:
    planted = [(sleep, ()), (die, (int(signal.SIGSEGV),)), (complain, (ValueError, "no")), (end, ("a",)), (end, ("b",))]
    jobs = [Job(function, arguments, 3, tmp_path / str(n)) for n, (function, arguments) in enumerate(planted)]
    outcomes = list(run_all(jobs, processes=2))
    kinds = {job.output.name: outcome.kind for job, outcome in outcomes}
    assert kinds == {"0": "hung", "1": "crashed", "2": "failed", "3": "ended", "4": "ended"}
    assert outcomes[-1][0] is jobs[0]


def test_no_more_run_at_once_than_asked(tmp_path: Path) -> None:
    jobs = [Job(time.sleep, (0.5,), LIMIT, tmp_path / str(n)) for n in range(4)]
    began = time.monotonic()
    assert [outcome.kind for _, outcome in run_all(jobs, processes=2)] == ["ended"] * 4
    assert time.monotonic() - began >= 1


def test_the_deadline_stops_what_runs_and_what_waits(tmp_path: Path) -> None:
    jobs = [Job(sleep, (tmp_path / f"pid {n}",), LIMIT, tmp_path / str(n)) for n in range(3)]
    run(end, (), limit=LIMIT, output=tmp_path / "output")
    outcomes = list(run_all(jobs, processes=2, deadline=time.monotonic() + 2))
    assert [outcome.kind for _, outcome in outcomes] == ["stopped"] * 3
    assert [outcome.detail for job, outcome in outcomes if job is jobs[2]] == ["not begun before the deadline"]
    assert all(is_gone(int((tmp_path / f"pid {n}").read_text())) for n in range(2))
    assert not (tmp_path / "2").exists()
    assert [outcome.kind for _, outcome in run_all(jobs, deadline=time.monotonic() - 1)] == ["stopped"] * 3


def test_closing_the_iterator_kills_what_runs(tmp_path: Path) -> None:
    jobs = [Job(sleep, (tmp_path / "pid",), LIMIT, tmp_path / "0"), Job(time.sleep, (2,), LIMIT, tmp_path / "1")]
    with closing(run_all(jobs, processes=2)) as outcomes:  # type: ignore[type-var]
        assert next(outcomes)[0] is jobs[1]
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    assert is_gone(pid)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_caller_that_is_interrupted_or_killed(number: signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"""
import sys
sys.path[:0] = [{str(ROOT / "tests" / "benchmarks")!r}, {str(ROOT)!r}]
from pathlib import Path
from benchmarks.isolation import run
from tests.benchmarks.test_isolation import have_children
if __name__ == "__main__":
    run(have_children, (Path({str(pids)!r}), True), limit=60, output=Path({str(tmp_path / "output")!r}))
"""
    path = tmp_path / "caller.py"
    path.write_text(script)
    caller = subprocess.Popen([sys.executable, path], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (pids.exists() and pids.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)
    caller.send_signal(number)
    assert caller.wait(30) != 0
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


@pytest.mark.gpu
def test_every_call_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    for n in range(2):
        assert run(use_cuda, (), limit=120, output=tmp_path / str(n)) == Outcome("ended", "", pytest.approx(60, abs=60))
