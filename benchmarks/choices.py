"""The search that makes convolution's table of choices, kernels/cuda/conv2d/choices.json: for each problem of the suites, the
variant, tile and splits that take the least time on this GPU. Every candidate's result is compared with float64 before it is
timed.

Each problem is searched by a process of its own: one that hangs, crashes or loses the GPU costs that problem only. A search
writes each finished problem to disk at once; interrupted, the same command continues it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.cuda_timing import L2Flush, measure
from benchmarks.environment import describe
from benchmarks.isolation import Job, Outcome, run, run_all
from benchmarks.measure import fair
from benchmarks.ops.operation import Call, double
from benchmarks.suites import Selected
from benchmarks.timing import Limits, interleave, loop_sampler, summarize
from torch_unroll.engines import load, refusal, resolve_precision
from torch_unroll.engines.compiled import CompiledEngine
from torch_unroll.engines.compiled.conv2d_call import problem_of
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.variants import SELECTORS
from torch_unroll.kernels.planning import Configuration

SCHEMA = "torch-unroll-choices"
VERSION = 1

#: Seconds of each choice, the median of so many samples, all choices in turn.
Timer = Callable[[Sequence[Configuration], int], dict[Configuration, float]]
#: The best choice, and the seconds of all that were timed. The choices come with the one predicted fastest first.
Strategy = Callable[[Sequence[Configuration], Timer], tuple[Configuration, dict[Configuration, float]]]

#: Samples of each choice: of the first round of halving, and of whatever is entered in the table.
FEW, MANY = 4, 32
#: What the random strategy times.
SHARE = 0.25


# ---- strategies ----------------------------------------------------------------------------------------------------------


def grid(choices: Sequence[Configuration], timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    """All of them."""
    seconds = timer(choices, MANY)
    return min(seconds, key=seconds.__getitem__), seconds


def random(choices: Sequence[Configuration], timer: Timer, seed: str) -> tuple[Configuration, dict[Configuration, float]]:
    """A share of them that follows from the seed, and the one predicted fastest."""
    first, *others = choices
    return grid([first, *Random(seed).sample(others, round(SHARE * len(others)))], timer)


def halving(choices: Sequence[Configuration], timer: Timer) -> tuple[Configuration, dict[Configuration, float]]:
    """Successive halving (Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
    2016): all of them with few samples, then the faster half with twice as many, and so on until the last have MANY."""
    left, samples, seconds = list(choices), FEW, dict[Configuration, float]()
    while True:
        seconds.update(timer(left, samples))
        left.sort(key=seconds.__getitem__)
        if samples >= MANY:
            return left[0], seconds
        left, samples = left[: -(-len(left) // 2)], 2 * samples


STRATEGIES = ("grid", "random", "halving")


def _strategy(name: str, seed: str) -> Strategy:
    return partial(random, seed=seed) if name == "random" else {"grid": grid, "halving": halving}[name]


# ---- one problem ---------------------------------------------------------------------------------------------------------


def _with(choice: Configuration, call: Call) -> Call:
    def forced() -> tuple[Tensor, ...]:
        with planning.force("conv2d", choice):
            return call()

    return forced


def engine_of(device: torch.device) -> str:
    """The compiled engine that serves a device.

    Raises:
        ValueError: there is none.
    """
    reasons = {name: refusal(name, "conv2d", device, torch.float32) for name in ("cuda", "cupy")}
    for name, reason in reasons.items():
        if reason is None:
            return name
    raise ValueError("choices: no compiled engine runs here; " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))


class Prepared:
    """A problem with its tensors: what can compute it, which of that is right, and how long it takes."""

    def __init__(self, case: Case, device: torch.device, engine: str, seed: int):
        self.case, self.device = case, device
        operation = case.operation
        tensors = operation.tensors(case, device, seed)
        self._call = operation.call(case, tensors, engine)
        compiled = load(engine)
        assert isinstance(compiled, CompiledEngine)
        (result,) = self._call()
        x, w, y = {
            "fprop": (tensors["x"], tensors["w"], result),
            "dgrad": (result, tensors["w"], tensors["dy"]),
            "wgrad": (tensors["x"], result, tensors["dy"]),
        }[case.direction]
        shape = case.shape
        padding = (shape.padding[0], shape.padding[0], shape.padding[1], shape.padding[1])
        geometry = (shape.stride, padding, shape.dilation, shape.groups)
        problem = problem_of(case.direction, x, w, y, geometry, resolve_precision("conv", x))
        selector, gpu = SELECTORS[f"conv2d_{case.direction}"], compiled.launcher.properties(x.device)
        self.key = selector.key(problem)
        candidates = selector.configurations(problem, gpu)
        self.predicted = {choice: selector.predict(problem, choice, gpu).seconds for choice in candidates}
        self.choices = sorted(candidates, key=self.predicted.__getitem__)
        #: What would be chosen without a table.
        self.by_model = selector.select(problem, replace(gpu, name="")).configuration
        torch.backends.cudnn.benchmark = False  # what is not timed needs no search
        self._exact = operation.call(case, double(tensors), "eager")()
        self._torchs = operation.call(case, tensors, "eager")()
        self._tensors, self._engine = tensors, engine

    def complaint(self, choice: Configuration) -> str | None:
        """What is wrong with a choice's result; None if nothing is."""
        with planning.force("conv2d", choice):
            found = self._call()
        return self.case.operation.complaint(self.case, self._engine, self._tensors, found, self._exact, self._torchs)

    def time(self, choices: Sequence[Configuration], samples: int) -> dict[Configuration, float]:
        """Cold on a GPU; on a CPU, where the emulator computes, by the clock on the wall."""
        limits = Limits(least=samples, most=samples, seconds=float("inf"), uncertainty=0.0)
        calls = {str(each): _with(each, self._call) for each in choices}
        if self.device.type == "cuda":
            timed = measure(calls, L2Flush(self.device), limits).cold
        else:
            timed = interleave({name: loop_sampler(call, seconds=0.0) for name, call in calls.items()}, limits)
        return {each: summarize(timed[str(each)]).median for each in choices}


def search(prepared: Prepared, strategy: Strategy, tell: Callable[[str], None]) -> dict[str, Any]:
    """A problem's row: the best choice, the model's, and every candidate's time in microseconds or what is wrong with it. It
    tells what it is about to do, in case that never returns."""
    wrong: dict[str, str] = {}
    right: list[Configuration] = []
    for choice in prepared.choices:
        tell(f"checking {choice}")
        try:
            problem = prepared.complaint(choice)
        except torch.OutOfMemoryError as error:
            problem = f"out of memory: {str(error).splitlines()[0]}"
        if problem is None:
            right.append(choice)
        else:
            wrong[str(choice)] = problem
    tell("timing")
    row: dict[str, Any] = {"case": prepared.case.key, "wrong": wrong, "model": list(prepared.by_model), "best": None, "us": {}}
    if right:
        best, seconds = strategy(right, prepared.time)
        row.update(best=[*best, _microseconds(seconds[best])], us={str(each): _microseconds(s) for each, s in seconds.items()})
    return row


def _microseconds(seconds: float) -> float:
    return float(f"{1e6 * seconds:.4g}")


# ---- the search ----------------------------------------------------------------------------------------------------------


def survey(device: torch.device, path: Path) -> None:
    """Writes what a search must know of the machine."""
    results.save({"environment": describe(device), "engine": engine_of(device)}, path)


def search_case(
    case: Case,
    device: torch.device,
    engine: str,
    strategy: str,
    seed: int,
    prepare: Callable[[Case, torch.device, str, int], Prepared],
    path: Path,
) -> None:
    """Writes a case's row; until it has one, what it is doing."""

    def tell(doing: str) -> None:
        results.save({"doing": doing}, path)

    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    tell("preparing")
    with fair(case.dtype), stream:
        prepared = prepare(case, device, engine, seed)
        row = {"key": prepared.key, **search(prepared, _strategy(strategy, f"{seed} {case.key}"), tell)}
    results.save(row, path)


def _complaint(outcome: Outcome, told: Mapping[str, Any]) -> str:
    return f"{outcome.detail}, {told['doing']}" if "doing" in told else outcome.detail


@dataclass
class Search:
    """The cases of a search, and how it goes about them."""

    cases: list[Case]
    device: torch.device
    strategy: str
    out: Path
    minutes: float | None = None
    seed: int = 0
    #: Seconds that a case may take.
    limit: float = 120.0
    prepare: Callable[[Case, torch.device, str, int], Prepared] = Prepared
    survey: Callable[[torch.device, Path], None] = survey

    def go(self) -> dict[str, Any]:
        """Searches; returns the document, which is also on disk. Ctrl-C keeps what was measured."""
        self._folder.mkdir(parents=True, exist_ok=True)
        here = self._survey()
        document = self._resume(here["environment"])
        rows: dict[str, Any] = document["problems"]
        done = {row["case"] for row in rows.values()}
        wanted = [case for case in self.cases if case.key not in done]
        if done:
            print(f"continuing: {len(self.cases) - len(wanted)} of {len(self.cases)} cases are done", file=sys.stderr)
        deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        longest = 0.0
        progress = tqdm(wanted, unit="case", file=sys.stderr, dynamic_ncols=True)
        for i, case in enumerate(progress):
            began = time.monotonic()
            row = None
            if deadline is None or began + longest <= deadline:
                progress.set_description(case.key[:60])
                row = self._row(case, here["engine"], deadline)
            if row is None:
                progress.close()
                print(f"{len(wanted) - i} cases left: they do not fit in {self.minutes:g} minutes", file=sys.stderr)
                break
            rows[case.key] = row
            results.save(document, self.out)
            if "error" in row:
                progress.write(f"{case.key}: {row['error']}; what it said: {self._said(case)}", file=sys.stderr)
            longest = max(longest, time.monotonic() - began)
        with suppress(OSError):  # what failed has left there what it said
            self._folder.rmdir()
        return document

    @property
    def _folder(self) -> Path:
        return self.out.with_name(self.out.name + ".output")

    def _said(self, case: Case) -> Path:
        return self._folder / (re.sub(r"[^\w=,.]+", "-", case.key)[:200] + ".txt")

    def _survey(self) -> dict[str, Any]:
        path = self._folder / "here.json"
        outcome = run(self.survey, (self.device, path), limit=self.limit, output=path.with_suffix(".txt"))
        if outcome.kind != "ended":
            raise ValueError(outcome.detail)
        here = json.loads(path.read_text())
        path.unlink()
        path.with_suffix(".txt").unlink()
        return here

    def _row(self, case: Case, engine: str, deadline: float | None) -> dict[str, Any] | None:
        """A case's row; None if the deadline came first."""
        path = self._said(case).with_suffix(".json")
        path.unlink(missing_ok=True)
        call = (case, self.device, engine, self.strategy, self.seed, self.prepare, path)
        ((_, outcome),) = run_all([Job(search_case, call, self.limit, self._said(case))], deadline=deadline)
        told = json.loads(path.read_text()) if path.exists() else {}
        path.unlink(missing_ok=True)
        if outcome.kind == "stopped":
            self._said(case).unlink(missing_ok=True)
            return None
        if outcome.kind != "ended":
            return {"case": case.key, "key": None, "error": _complaint(outcome, told)}
        self._said(case).unlink()
        return told

    def _resume(self, environment: dict[str, Any]) -> dict[str, Any]:
        new = {
            "schema": SCHEMA,
            "version": VERSION,
            "environment": environment,
            "strategy": self.strategy,
            "seed": self.seed,
            "problems": {},
        }
        if not self.out.exists():
            return new
        try:
            found = json.loads(self.out.read_text())
        except json.JSONDecodeError as problem:
            raise results.ForeignError(f"{self.out}: not JSON ({problem})") from problem
        if not isinstance(found, dict) or (found.get("schema"), found.get("version")) != (SCHEMA, VERSION):
            raise results.ForeignError(f"{self.out}: expected schema {SCHEMA} version {VERSION}")
        told = [(name, found["environment"], environment) for name in ("device", "engine_digest", "torch", "driver")]
        told += [(name, found, new) for name in ("strategy", "seed")]
        changed = [f"{name}: {old.get(name)} → {now.get(name)}" for name, old, now in told if old.get(name) != now.get(name)]
        if changed:
            raise results.ForeignError(
                f"{self.out}: left by another search ({'; '.join(changed)}); delete it, or name another --out"
            )
        return {**new, **found}


def distinct(selected: Sequence[Selected]) -> list[Case]:
    """The convolutions, each direction by itself, without their biases, which change no choice."""
    cases = [each.case for each in selected if each.case.op == "conv2d" and each.case.direction != "train"]
    return list({bare.key: bare for bare in (replace(each, shape=replace(each.shape, bias=0)) for each in cases)}.values())


# ---- the table -----------------------------------------------------------------------------------------------------------


def require_gpu(device: torch.device) -> None:
    """Refuses to enter in the table what no GPU has measured."""
    if device.type != "cuda":
        raise ValueError("--write: the table holds what a GPU has measured, and this search runs on the CPU, on emulated kernels")


def write(document: Mapping[str, Any]) -> str:
    """Enters a search's best choices in the table; what was done, in words."""
    path = planning.table_path("conv2d")
    environment = document["environment"]
    if environment["device_type"] != "cuda":
        require_gpu(torch.device("cpu"))
    devices = json.loads(path.read_text())["devices"]
    found = {row["key"]: row["best"] for row in document["problems"].values() if row.get("key") and row.get("best")}
    devices[environment["device"]] = {**devices.get(environment["device"], {}), **found}
    path.write_text(_text(devices))
    return f"{len(found)} entries of {environment['device']} written to {path}"


def _text(devices: Mapping[str, Mapping[str, Any]]) -> str:
    """An entry a line."""
    parts = []
    for name, entries in sorted(devices.items()):
        lines = ",\n".join(f"      {json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(entries.items()))
        parts.append(f"    {json.dumps(name)}: {{\n{lines}\n    }}")
    inside = "{\n" + ",\n".join(parts) + "\n  }" if parts else "{}"
    return f'{{\n  "devices": {inside}\n}}\n'


def summary(document: Mapping[str, Any]) -> str:
    """How much faster the best choices are than the model's, and what was wrong."""
    rows = list(document["problems"].values())
    ratios = []
    for row in rows:
        model = row.get("us", {}).get(str(Configuration(*row["model"]))) if row.get("best") else None
        if model is not None:
            ratios.append(model / row["best"][-1])
    lines = [f"{sum(bool(row.get('best')) for row in rows)} of {len(rows)} cases have a best choice"]
    if document["environment"]["device_type"] != "cuda":
        lines.append("a dry run: emulated kernels were timed by the clock on the wall, which says nothing of a GPU")
    elif ratios:
        median = summarize(ratios).median
        lines.append(f"the model's own choice takes {median:.2f} times as long in the median, {max(ratios):.2f} at most")
    lines += [f"wrong: {row['case']}: {choice}: {why}" for row in rows for choice, why in row.get("wrong", {}).items()]
    lines += [f"failed: {row['case']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)
