"""The phases of a run, the most important first: exact results, ceilings and golden data, timings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks.first_light import programs
from benchmarks.gpu import outcome, timings
from benchmarks.gpu.exact.cases import by_job
from benchmarks.gpu.store import Record, Store
from benchmarks.gpu.work import ExactJob, run_exact
from benchmarks.isolation import Job, run_all

#: The end of each phase as a share of the whole time; a phase that ends early leaves its time to the next one. On the
#: emulator, the exact phases may take most of the time.
ENDS = {"exact cuda": 0.34, "exact cupy": 0.46, "exact numba": 0.49, "hardware": 0.64, "timings": 0.98}
ENDS_EMULATED = dict.fromkeys(ENDS, 0.85) | {"timings": 0.98}
#: Limits of one job, in seconds. The one for exact jobs is a last resort, because their cases have their own limits.
EXACT_SECONDS, TIMING_SECONDS = 300.0, 45.0
#: How many times a job whose process died is continued after the case in which it died.
CONTINUATIONS = 2
#: How many cases of a job run in addition to those that `covering` keeps because they launch further kernels. MORE_EMULATED is
#: for the emulator, and MORE_COMPILED for cupy, which compiles kernels first. Numba compiles them too, and a job has NUMBA_CASES
#: cases in all.
MORE_EMULATED, MORE_COMPILED, NUMBA_CASES = 4, 2, 1


@dataclass
class Plan:
    """What a run does, and where its results go."""

    store: Store
    device: str
    minutes: float
    processes: int
    seed: int
    began: float  # by time.monotonic
    only: Callable[[str], bool] = lambda key: True
    #: The functions that jobs run; tests replace them.
    exact: Callable[[ExactJob], None] = run_exact
    timing: Callable[[str, str, int], None] = timings.run_timing

    @property
    def small(self) -> bool:
        """Whether cases are small, as on the emulator."""
        return self.device == "cpu"

    def until(self, phase: str) -> float:
        """When a phase has to end, by time.monotonic."""
        return self.began + 60 * self.minutes * (ENDS_EMULATED if self.small else ENDS)[phase]


def exact_jobs(plan: Plan, engine: str) -> list[ExactJob]:
    """The exact jobs of an engine, the most important first.

    Cupy and numba compile kernels first, which takes time. So with cupy, jobs whose names end with tf32, float32 or float64
    come last, and with numba, only about twelve of all jobs are run.
    """
    names = list(by_job(plan.small, plan.seed))
    if engine == "cupy":
        names.sort(key=lambda name: name.endswith(("tf32", "float32", "float64")))
    more = {"cuda": MORE_EMULATED if plan.small else None, "cupy": MORE_COMPILED, "numba": NUMBA_CASES}[engine]
    if engine == "numba":
        names = names[:: max(1, len(names) // 12)]
    jobs = [ExactJob(name=name, engine=engine, device=plan.device, seed=plan.seed, small=plan.small, more=more) for name in names]
    return [job for job in jobs if plan.only(job.key)]


def anything(plan: Plan, engines: Sequence[str]) -> bool:
    """Whether the run selects any exact job of these engines, any measurement of the hardware, or any timing."""
    names = ["ceilings", *timings.keys(plan.small), *(f"hardware: {measurement.title}" for measurement in programs.MEASUREMENTS)]
    return any(exact_jobs(plan, engine) for engine in engines) or any(map(plan.only, names))


def run_exactness(plan: Plan, engine: str) -> None:
    """Runs the unfinished exact jobs of an engine. A job that dies is continued after the case in which it died, at most
    CONTINUATIONS times."""
    done = plan.store.done("checks.jsonl")
    died_in = {record["resumes"]: record["died_in"] for record in plan.store.lines["checks.jsonl"] if "resumes" in record}
    waiting = [replace(job, after=died_in.get(job.key, -1) + 1) for job in exact_jobs(plan, engine) if job.key not in done]
    for attempt in range(1 + CONTINUATIONS):
        waiting = list(_round(plan, f"exact {engine}", waiting, last=attempt == CONTINUATIONS))
        if not waiting:
            return


def _round(plan: Plan, phase: str, jobs: list[ExactJob], last: bool) -> Iterator[ExactJob]:
    """Runs each job once and saves its record, unless time ran out. Yields the jobs that died in a case and have to
    continue after it.

    In the `last` round, no job continues.
    """
    by_output: dict[Path, ExactJob] = {}
    with outputs(plan) as folder:
        for number, job in enumerate(jobs):
            by_output[folder / f"{number}.txt"] = job
        work = [
            Job(function=plan.exact, arguments=(job,), limit=EXACT_SECONDS, output=output) for output, job in by_output.items()
        ]
        for job_run, process in progress(run_all(work, plan.processes, plan.until(phase)), len(work), phase):
            job = by_output[job_run.output]
            record = {"engine": job.engine, **outcome.read(job.key, job_run.output, process)}
            job_run.output.unlink(missing_ok=True)
            if record["outcome"] == "left":
                if record["cases"]:  # what it has found counts, although the job will run again
                    worst = outcome.worst(record["cases"])
                    plan.store.add("checks.jsonl", record | worst | {"job": f"{job.key} (until the time was over)"})
                continue
            died_in = record.get("died_in")
            if died_in is not None and not last:
                record.update(job=f"{job.key} (up to case {died_in})", resumes=job.key)
                yield replace(job, after=died_in + 1)
            plan.store.add("checks.jsonl", record)


def run_timings(plan: Plan) -> None:
    """Measures the ceilings, and then times one unfinished case after the other until the time is over."""
    done = plan.store.done("timings.jsonl")
    with outputs(plan) as folder:
        work: dict[Path, str] = {}
        for number, key in enumerate([key for key in timings.keys(plan.small) if key not in done and plan.only(key)]):
            work[folder / f"{number}.txt"] = key
        jobs = []
        if plan.only("ceilings") and "ceilings" not in done:
            work[folder / "ceilings.txt"] = "ceilings"
            output = folder / "ceilings.txt"
            jobs.append(Job(function=timings.run_ceilings, arguments=(plan.device,), limit=TIMING_SECONDS, output=output))
        jobs += [
            Job(function=plan.timing, arguments=(key, plan.device, plan.seed), limit=TIMING_SECONDS, output=output)
            for output, key in work.items()
            if key != "ceilings"
        ]
        for job, process in progress(run_all(jobs, 1, plan.until("timings")), len(jobs), "timings"):
            record = outcome.read(work[job.output], job.output, process)
            if record["outcome"] != "left":
                plan.store.add("timings.jsonl", record)


def run_hardware(plan: Plan) -> Record:
    """Runs the unfinished measurements of first_light, some of which record golden data for the emulator.

    Returns a record with a note if measurements were left out, otherwise an empty one.
    """
    if plan.device == "cpu":
        return {"note": "left out: the emulator has no hardware to measure"}
    if plan.store.run["environment"]["capability"] != [9, 0]:
        return {"note": "left out: the programs of first_light need compute capability 9.0"}
    binaries = programs.ROOT / "build" / "first_light"
    done = plan.store.done("hardware.jsonl")
    waiting = [measurement for measurement in programs.MEASUREMENTS if measurement.title not in done]
    waiting = [measurement for measurement in waiting if plan.only(f"hardware: {measurement.title}")]
    if stale := programs.stale(binaries, dict.fromkeys(measurement.program for measurement in waiting)):
        remedy = "python -m benchmarks.first_light --build-only builds them"
        return {"note": f"left out: {', '.join(stale)} in {binaries} are missing, or built from other sources; {remedy}"}
    for number, measurement in enumerate(progress(iter(waiting), len(waiting), "hardware")):
        room = plan.until("hardware") - time.monotonic()
        if room <= 1:
            return {
                "note": f"{len(waiting) - number} of {len(programs.MEASUREMENTS)} measurements left, because the time was over"
            }
        result = programs.run(replace(measurement, seconds=min(measurement.seconds, int(room))), binaries)
        record = {"job": measurement.title, "records": result.records, "detail": result.failure or ""}
        plan.store.add("hardware.jsonl", {**record, "outcome": "failed" if result.failure else "right"})
    return {}


@contextmanager
def outputs(plan: Plan) -> Iterator[Path]:
    """A temporary folder for the output of jobs. It is in the folder of results, whose free space `Store.add` checks."""
    with TemporaryDirectory(prefix=".jobs-", dir=plan.store.folder) as folder:
        yield Path(folder)


def progress(outcomes: Iterator[Any], total: int, phase: str) -> Iterator[Any]:
    """Yields the outcomes, and shows a progress bar."""
    bar = tqdm(total=total, desc=phase, unit="job", file=sys.stderr, dynamic_ncols=True, disable=total == 0)
    with bar:
        for item in outcomes:
            bar.update()
            yield item


def timed(store: Store, name: str, run: Callable[[], Record | None]) -> None:
    """Runs a phase, and records how long it took and its note."""
    began = time.monotonic()
    note = run() or {}
    earlier = [phase for phase in store.run["phases"] if phase["phase"] != name]
    store.run["phases"] = [*earlier, {"phase": name, "seconds": round(time.monotonic() - began, 1), **note}]
    store.write_run()


def processes(device: str, requested: int | None) -> int:
    """How many jobs run at once: `requested` or, if it is None, one per core, but at most eight on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return requested or (min(8, cores) if device == "cuda" else cores)


def left(plan: Plan) -> list[str]:
    """The unfinished exact jobs of engine cuda, which a run has to complete, in words."""
    done = plan.store.done("checks.jsonl")
    undone = [job for job in exact_jobs(plan, "cuda") if job.key not in done]
    return [f"{len(undone)} jobs of engine cuda, from {undone[0].name} on"] if undone else []


def beyond(plan: Plan, engines: Sequence[str]) -> list[str]:
    """The unfinished jobs for which time may not suffice, in words: those of other engines, and the most telling timings."""
    done, words = plan.store.done("checks.jsonl"), []
    for engine in engines:
        jobs = exact_jobs(plan, engine)
        undone = [job for job in jobs if job.key not in done]
        if engine != "cuda" and undone:
            words.append(f"{len(undone)} of {len(jobs)} jobs of engine {engine}, from {undone[0].name} on")
    first = [key for key in timings.first(plan.small) if plan.only(key)]
    untimed = [key for key in first if key not in plan.store.done("timings.jsonl")]
    if untimed:
        words.append(f"{len(untimed)} of the {len(first)} most telling timings, from {untimed[0]} on")
    return words
