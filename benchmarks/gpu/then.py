"""The second, shorter run: memcheck of failed cases or, if none failed, profiles, tests and a search for fast configurations."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.environment import REPOSITORY
from benchmarks.gpu import outcome, timings
from benchmarks.gpu.phases import Plan, outputs, progress
from benchmarks.gpu.work import tell
from benchmarks.isolation import Job, run_all

#: At most this many failed jobs are run again, with one case each.
MOST_CASES = 8
#: Characters of a tool's output that are kept.
_MOST_OUTPUT = 6000
_SANITIZER_STATUS = 86
#: Convolutions that are profiled.
_PROFILED = tuple(key for key in timings.first(small=False) if key.startswith("conv2d/"))[::4][:3]
_SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "LaunchStats")
_METRICS = "sm__inst_executed_pipe_tensor_op_gmma.sum,sm__cycles_active.avg,lts__t_bytes.sum,dram__bytes.sum"


@dataclass(frozen=True)
class Tool:
    """A command, and the seconds that it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float


def run_second(plan: Plan) -> int:
    """Runs the tools that follow from the first run, and returns the exit status."""
    wanted = tools(plan)
    done = plan.store.done("second.jsonl")
    waiting = [tool for tool in wanted if tool.name not in done]
    with outputs(plan) as folder:
        by_output = {folder / f"{number}.txt": tool for number, tool in enumerate(waiting)}
        jobs = [
            Job(function=run_tool, arguments=(tool.command,), limit=tool.seconds, output=output)
            for output, tool in by_output.items()
        ]
        for job, process in progress(run_all(jobs, 1, plan.until("timings")), len(jobs), "second run"):
            record = outcome.read(by_output[job.output].name, job.output, process)
            record["said"] = outcome.end(job.output, _MOST_OUTPUT)
            record["command"] = shlex.join(by_output[job.output].command)
            if record["outcome"] != "left":
                plan.store.add("second.jsonl", record)
    records = plan.store.lines["second.jsonl"]
    for record in records:
        print(f"{record['outcome']:>8}  {record['job']}: {record['detail']}"[:150])
        print("".join(f"          {line[:140]}\n" for line in record.get("said", "").splitlines()[-8:]), end="")
    left = [tool.name for tool in wanted if tool.name not in plan.store.done("second.jsonl")]
    for name in left:
        print(f"    left  {name}")
    return 1 if left or any(record["outcome"] in outcome.BAD for record in records) else 0


def tools(plan: Plan) -> list[Tool]:
    """The tools of the second run, each of which runs as a job.

    If cases failed in the first run, memcheck runs on one failed case of each of up to MOST_CASES jobs. Otherwise, the tools are
    profiles, the tests, and a search for the fastest configurations.

    Raises:
        ValueError: there are no results of a first run.
    """
    checks = plan.store.lines["checks.jsonl"]
    if not checks:
        raise ValueError(f"{plan.store.folder}: expected the results of a first run: first run without --then")
    failing = [record for record in checks if record["outcome"] in outcome.BAD and record["cases"]]
    python = (sys.executable, "-m")
    if failing:
        sanitized: list[Tool] = []
        for record in failing[:MOST_CASES]:
            case = json.dumps(record["cases"][0]["case"])
            engine = record["job"].partition(": ")[0]
            once = (*python, "benchmarks.gpu.once", "case", case, engine, plan.device)
            sanitizing = ("--tool", "memcheck", "--error-exitcode", str(_SANITIZER_STATUS), "--print-limit", "5")
            sanitized.append(Tool(f"memcheck {record['job']}", ("compute-sanitizer", *sanitizing, *once), 60.0))
        return sanitized
    profiles = [
        Tool(f"ncu {key}", (*_ncu(), *python, "benchmarks.gpu.once", "timing", key, plan.device), 45.0) for key in _PROFILED
    ]
    options: tuple[str, ...] = ("-m", "gpu", "-q", "-p", "no:cacheprovider")
    if importlib.util.find_spec("xdist"):
        options += ("-n", str(plan.processes), "--max-worker-restart", "20")
    tests = Tool("pytest -m gpu", (*python, "pytest", "tests", *options), 120.0)
    search = ("--suite", "resnet50", "--dtype", "bf16", "--layout", "channels_last", "--budget", "1")
    out = str(plan.store.folder.resolve() / "choices.json")
    return [*profiles, tests, Tool("choices", (*python, "benchmarks", "choices", *search, "--out", out), 75.0)]


def _ncu() -> Sequence[str]:
    sections = [word for name in _SECTIONS for word in ("--section", name)]
    first_launch = ("--kernel-name", "regex:(fprop|dgrad|wgrad)_", "--launch-skip", "1", "--launch-count", "1")
    return ("ncu", "--clock-control", "none", *first_launch, *sections, "--metrics", _METRICS)


def run_tool(command: Sequence[str]) -> None:
    """Runs a command within a job, and reports if its program is missing or fails.

    The command writes to the output of the job, and is killed if the job is.
    """
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/local/cuda/bin")
    if program is None:
        tell("missing", detail=f"{command[0]} was not found: it comes with the CUDA toolkit")
        return
    paths = os.pathsep.join([str(REPOSITORY / "pyext"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths}
    if command[0] == "compute-sanitizer":  # torch's memory cache would hide accesses beyond a tensor
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    process = subprocess.run([program, *command[1:]], cwd=REPOSITORY, env=environment, check=False)
    if process.returncode:
        found_errors = process.returncode == _SANITIZER_STATUS
        reason = "the sanitizer found errors" if found_errors else f"exit status {process.returncode}"
        tell("verdict", outcome="error", detail=reason)
