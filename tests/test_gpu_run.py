"""A run on a GPU, rehearsed on the emulator: what goes wrong in a job is reported as what it is, and takes nothing else down."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cli
from benchmarks.first_light.programs import Measurement
from benchmarks.gpu import command, keep, outcome, phases, place, summary, work
from benchmarks.gpu.exact import conv2d as conv2d_cases
from benchmarks.gpu.exact import max_pool2d as max_pool2d_cases
from benchmarks.gpu.exact import rnn as rnn_cases
from benchmarks.gpu.exact.case import Case, judge
from benchmarks.gpu.exact.cases import by_job, covering, from_json
from benchmarks.gpu.store import Store, load_run
from benchmarks.gpu.work import ExactJob
from benchmarks.isolation import Outcome
from benchmarks.results import ForeignError
from torch_unroll.engines import load, refusal
from torch_unroll.kernels.table import kernels

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    refusal("cuda", "rnn", CPU, torch.float32) is not None,
    reason="the emulated kernels are not built: python kernels/build.py emulated",
)
ENVIRONMENT = {
    "device": "NVIDIA H200",
    "device_type": "cuda",
    "driver": "580",
    "engine_digest": "0123",
    "torch": "2.11",
    "seed": 0,
    "capability": [9, 0],
}


# ---- cases ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [True, False], ids=["emulator", "GPU"])
def test_a_case_is_made_again_from_what_a_file_tells(small: bool) -> None:
    for name, cases in by_job(small, seed=3).items():
        for case in (cases[0], cases[-1]):
            assert from_json(json.loads(json.dumps(case.as_json()))) == case
            assert case.job == name


def test_a_run_on_a_gpu_has_geometries_of_every_kind() -> None:
    sizes = conv2d_cases.GEOMETRIES.values()
    assert len(sizes) >= 15
    assert {3, 16, 32, 40} <= {size.C for size in sizes}
    assert {(2, 2), (3, 3)} <= {size.stride for size in sizes}
    assert any(size.groups > 1 for size in sizes)
    assert any(size.dilation != (1, 1) for size in sizes)
    assert set(rnn_cases.SIZES) > {(4, 32, 1024, 1)}


def test_what_is_expected_is_what_engine_torch_computes() -> None:
    """The full sizes are too much for the emulator: that the expectations are right is seen by an engine of torch's operators."""
    kept: dict[tuple[object, ...], Case] = {}
    for case in itertools.chain.from_iterable(by_job(small=False, seed=1).values()):
        told = case.as_json()
        if "32-bit" in str(told.get("window")):
            continue  # the reference unfolds its windows of 33,000 cells
        if told.get("arithmetic", told.get("dtype")) == "float64" and told.get("nonlinearity") != "identity":
            extents = (told.get(name) for name in ("op", "direction", "geometry", "window", "T", "N", "H", "lengths", "bias"))
            kept[tuple(extents)] = case
    assert len(kept) > 150
    for case in kept.values():
        verdict = judge(case, load("torch"), CPU)
        assert verdict.outcome == "right", (case.key, verdict.detail)


class _Broken:
    """Engine cuda, but for what a function does to its results."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]):
        self.engine, self.spoil = load("cuda"), spoil

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.engine, name)
        if name == "launcher":
            return attribute

        def spoiled(*inputs: Any) -> Any:
            result = attribute(*inputs)
            return self.spoil(result) if isinstance(result, Tensor) else (self.spoil(result[0]), *result[1:])

        return spoiled


def _first_of(op: str) -> Case:
    """A case of an op that its variant takes."""
    jobs = by_job(small=True, seed=0)
    cases = next(cases for name, cases in jobs.items() if name.startswith(op))
    return next(case for case in cases if judge(case, load("cuda"), CPU).outcome == "right")


@pytest.mark.parametrize(
    "op", ["conv2d fprop", "conv2d wgrad", "rnn forward", "rnn backward", "rnn_cell", "max_pool2d", "unfold"]
)
def test_one_wrong_element_is_wrong(op: str) -> None:
    def spoil(result: Tensor) -> Tensor:
        result[(-1,) * result.dim()] += 1
        return result

    case = _first_of(op)
    verdict = judge(case, _Broken(spoil), CPU)
    assert verdict.outcome == "wrong"
    assert ": 1 of " in verdict.detail


@pytest.mark.parametrize("op", ["conv2d dgrad", "rnn forward", "max_pool2d"])
def test_an_element_that_nobody_writes_is_wrong(op: str) -> None:
    verdict = judge(_first_of(op), _Broken(torch.empty_like), CPU)
    assert verdict.outcome == "wrong"


def test_other_bits_the_second_time_are_noticed() -> None:
    calls = []

    def spoil(result: Tensor) -> Tensor:
        calls.append(1)
        result[(0,) * result.dim()] += len(calls) - 1
        return result

    assert judge(_first_of("conv2d fprop"), _Broken(spoil), CPU).outcome == "unsteady"


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])  # of 0 the rehearsal in .ci/run
def test_a_sample_launches_every_kernel(seed: int) -> None:
    planned: set[str] = set()
    for cases in by_job(small=True, seed=seed).values():
        for case in covering(cases, load("cuda"), CPU, seed, more=0):
            planned |= judge(case, load("cuda"), CPU).rows
    assert planned == {row.expression for row in kernels()}


def test_a_choice_that_was_forced_is_taken_back() -> None:
    before = conv2d_cases.conv2d.forced, rnn_cases.host.forced, dict(max_pool2d_cases.variants._FORWARD)
    for op in ("conv2d fprop", "rnn forward cluster", "rnn forward grid_flags", "max_pool2d forward staged"):
        judge(_first_of(op), load("cuda"), CPU)
    assert before == (conv2d_cases.conv2d.forced, rnn_cases.host.forced, dict(max_pool2d_cases.variants._FORWARD))
    assert rnn_cases.ROW_TILES["cluster"] == rnn_cases.variants.CLUSTER_ROW_TILES


# ---- faults planted into jobs -----------------------------------------------------------------------------------------------

HANGS, CRASHES, WRONG, UNSTEADY, RAISES = (
    f"rnn forward step {arithmetic}" for arithmetic in ("float16", "bfloat16", "tf32", "float32", "float64")
)
LACKS, RIGHT = "rnn backward step float16", "rnn backward step bfloat16"


def _crash() -> None:
    ctypes.string_at(0)


def planted(job: ExactJob) -> None:
    """What a job does, with a fault that the job's name asks for."""
    counter: list[int] = []

    def spoil(result: Tensor) -> Tensor:
        counter.append(1)
        if job.name == HANGS and len(counter) == 3:
            time.sleep(600)
        if job.name == CRASHES and len(counter) == 3:
            _crash()
        if job.name == RAISES and len(counter) == 3:
            raise RuntimeError("the driver says no")
        if job.name == WRONG:
            result[(0,) * result.dim()] += 1
        if job.name == UNSTEADY:
            result[(0,) * result.dim()] += len(counter) % 2 == 0
        return result

    if job.name == LACKS:
        work.refusal = lambda *_: "needs a package: pip install it"
    engine = _Broken(spoil)
    work.load = lambda _: engine
    work.covering = lambda cases, *_: cases[:4]
    work.run_exact(job)


def _options(out: Path, *more: str) -> argparse.Namespace:
    return command._parser().parse_args(["--device", "cpu", "--minutes", "2", "--out", str(out), "--processes", "2", *more])


def _reported(out: Path) -> dict[str, dict[str, Any]]:
    return {record["job"]: record for record in map(json.loads, (out / "checks.jsonl").read_text().splitlines())}


def test_each_planted_fault_is_reported_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phases, "EXACT_SECONDS", 20.0)
    monkeypatch.setattr(phases, "CONTINUATIONS", 1)
    options = _options(tmp_path, "--only", "rnn (forward|backward) step (float|b|tf)")
    assert command.run(options, exact=planted) == 1
    reported = _reported(tmp_path)
    hung = reported[f"cuda: {HANGS} (up to case 1)"]
    assert (hung["outcome"], hung["cases"][0]["case"]["arithmetic"]) == ("hung", "float16")
    assert reported[f"cuda: {HANGS}"]["outcome"] == "hung"  # again, behind it
    crashed = reported[f"cuda: {CRASHES} (up to case 1)"]
    assert crashed["outcome"] == "crashed"
    assert "SIGSEGV" in crashed["detail"]
    assert from_json(crashed["cases"][0]["case"]).job == CRASHES
    assert reported[f"cuda: {WRONG}"]["outcome"] == "wrong"
    assert reported[f"cuda: {WRONG}"]["cases"][0]["evidence"][0]["wrong"] == 1
    assert len(reported[f"cuda: {WRONG}"]["cases"]) == 4
    assert reported[f"cuda: {UNSTEADY}"]["outcome"] == "unsteady"
    assert reported[f"cuda: {RAISES}"]["outcome"] == "error"
    assert "the driver says no" in reported[f"cuda: {RAISES}"]["detail"]
    assert reported[f"cuda: {RAISES}"]["counts"]["right"] == 3  # one bad case does not end the job
    assert reported[f"cuda: {LACKS}"]["outcome"] == "missing"
    assert "pip install it" in reported[f"cuda: {LACKS}"]["detail"]
    assert reported[f"cuda: {RIGHT}"]["outcome"] == "right"
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= summary.MOST_LINES
    for word in ("hung", "crashed", "wrong", "unsteady", "error", "1 missing", "explain"):
        assert word in printed
    assert not list(tmp_path.glob(".jobs-*"))

    began = time.monotonic()  # the same command has nothing more to do
    assert command.run(options, exact=planted) == 1
    assert time.monotonic() - began < 60
    assert _reported(tmp_path) == reported


def test_what_the_time_did_not_reach_is_left_and_done_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options(tmp_path, "--only", "rnn_cell forward|^rnn/")
    monkeypatch.setattr(phases, "ENDS_EMULATED", dict.fromkeys(phases.ENDS, 0.0))
    assert command.run(options) == 1
    assert "5 of 5 jobs of engine cuda" in capsys.readouterr().out
    monkeypatch.undo()
    assert command.run(options) == 1  # all that was asked for is right, and most kernels were never launched
    printed = capsys.readouterr().out
    assert "never launched" in printed
    assert "left:" not in printed
    assert {record["outcome"] for record in _reported(tmp_path).values()} == {"right"}


# ---- the folder of a run ----------------------------------------------------------------------------------------------------


def _record(job: str, outcome_: str = "right", **more: Any) -> dict[str, Any]:
    return {"job": job, "outcome": outcome_, "detail": "", "seconds": 1.0, "cases": [], **more}


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path, ENVIRONMENT)
    for name in ("a", "b"):
        store.add("checks.jsonl", _record(name))
    content = (tmp_path / "checks.jsonl").read_bytes()
    for cut in (1, 2, 30):
        (tmp_path / "checks.jsonl").write_bytes(content[:-cut])
        assert list(Store(tmp_path, ENVIRONMENT).done("checks.jsonl")) == ["a"]
        Store(tmp_path, ENVIRONMENT).add("checks.jsonl", _record("c"))
        assert list(Store(tmp_path, ENVIRONMENT).done("checks.jsonl")) == ["a", "c"]


@pytest.mark.parametrize("name", ["device", "driver", "engine_digest", "torch", "seed"])
def test_another_run_is_not_mixed_in(tmp_path: Path, name: str) -> None:
    Store(tmp_path, ENVIRONMENT).add("checks.jsonl", _record("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ForeignError, match=rf"{name}: .* → other.*name another --out"):
        Store(tmp_path, {**ENVIRONMENT, name: "other"})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "another"}', '{"schema": "torch-unroll-gpu", "version": 99}'])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ForeignError, match=r"run\.json"):
        Store(tmp_path, ENVIRONMENT)
    with pytest.raises(ForeignError, match=r"run\.json"):
        load_run(tmp_path)


def test_a_full_file_keeps_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.store.MOST_BYTES", (1 << 20) + 1000)
    store = Store(tmp_path, ENVIRONMENT)
    store.add("checks.jsonl", _record("a", "wrong", cases=[{"outcome": "wrong", "evidence": ["x" * 2000]}]))
    (kept,) = Store(tmp_path, ENVIRONMENT).lines["checks.jsonl"]
    assert kept["outcome"] == "wrong"
    assert kept["cases"][0]["evidence"] == []


# ---- what came of a job -----------------------------------------------------------------------------------------------------

BEGIN = '{"event": "begin", "number": 4, "case": {"op": "rnn"}}'
END = '{"event": "end", "counts": {"right": 5}, "refusals": {}, "rows": ["k<float>"]}'


@pytest.mark.parametrize(
    ("lines", "process", "expected"),
    [
        ([BEGIN, END], Outcome("ended", "", 1.0), "right"),
        ([BEGIN, "Traceback", BEGIN[:20]], Outcome("crashed", "signal 11 (SIGSEGV)", 1.0), "crashed"),
        ([BEGIN], Outcome("hung", "no end within 60 s", 60.0), "hung"),
        ([BEGIN, '{"event": "error", "case": {}, "detail": "x"}', '{"event": "lost"}'], Outcome("failed", "", 1.0), "lost"),
        ([], Outcome("failed", "ImportError: no torch", 1.0), "failed"),
        ([BEGIN], Outcome("stopped", "stopped at the deadline", 1.0), "left"),
        (['{"event": "missing", "detail": "pip install cupy"}'], Outcome("ended", "", 1.0), "missing"),
        ([BEGIN, '{"event": "wrong", "case": {}, "detail": "d", "evidence": []}', END], Outcome("ended", "", 1.0), "wrong"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_job_printed_and_how_it_ended(lines: Sequence[str], process: Outcome, expected: str, tmp_path: Path) -> None:
    (tmp_path / "said.txt").write_text("\n".join(lines))
    record = outcome.read("cuda: a job", tmp_path / "said.txt", process)
    assert record["outcome"] == expected
    if expected in ("hung", "crashed"):
        assert record["died_in"] == 4
        assert record["cases"][-1]["case"] == {"op": "rnn"}
    if expected == "crashed":
        assert "Traceback" in record["output"]
    assert json.loads(json.dumps(record)) == record


# ---- before it begins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--minutes", "0"), "from 1 to 240"),
        (("--minutes", "nan"), "from 1 to 240"),
        (("--minutes", "soon"), "from 1 to 240"),
        (("--processes", "0"), "from 1 to 64"),
        (("--only", "("), "regular expression"),
        (("explain",), "expected a path"),
        (("run", "away"), "unrecognized argument"),
        (("--unknown",), "unrecognized arguments"),
    ],
)
def test_arguments_are_checked_before_work(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["gpu", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "GPU" in said
    assert "--device cpu" in said
    assert len(said.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


SEEN: dict[str, Any] = {"lack": None, "engines": {"cuda": None}, "free_bytes": 100 << 30, "processes": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lack": "there is no GPU"}, "there is no GPU"),
        ({"engines": {"cuda": "was not built; build it with: make cuda"}}, "engine cuda was not built"),
        ({"processes": ["123, python, 500 MiB"]}, "others use the card.*--shared"),
        ({"free_bytes": 1 << 30}, "1 GiB of free memory.*--shared"),
    ],
)
def test_a_place_that_will_not_do(change: dict[str, Any], said: str) -> None:
    place.require_place(SEEN, shared=False)
    with pytest.raises(ValueError, match=said):
        place.require_place(SEEN | change, shared=False)


def test_a_place_that_others_use_may_be_shared() -> None:
    place.require_place(SEEN | {"processes": ["123, python, 500 MiB"], "free_bytes": 1 << 30}, shared=True)


def test_a_full_disk_is_noticed_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["gpu", "--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


# ---- what a GPU would have given --------------------------------------------------------------------------------------------


def _measured_run(folder: Path) -> Store:
    store = Store(folder, {**ENVIRONMENT, "time": "2026-01-01"})
    key = "conv2d/fprop/bf16/channels_last/N=1,C=8,H=4,W=4,K=8,R=1,S=1"
    store.add("checks.jsonl", _record("cuda: x", rows=["k<float>"], counts={"right": 3}))
    tiles = {"key": "fprop/k", "best": ["hopper", "128x256", 1, 5.0], "us": {"hopper 128x256": 5.0}, "wrong": {}}
    tiles |= {"predicted_us": {"hopper 128x256": 4.0}, "case": key, "model": ["hopper", "128x256", 1]}
    providers = {"cuda": {"status": "ok", "cold": {"median": 5.0}}, "eager": {"status": "ok", "cold": {"median": 10.0}}}
    row = {"case": key, "op": "conv2d", "direction": "fprop", "status": "ok", "providers": providers, "ratios": {}}
    store.add("timings.jsonl", _record(key, row=row, tiles=tiles))
    pooling = "max_pool2d/fprop/bf16/channels_last/N=1,C=8,H=4,W=4,window=2,stride=2"
    row = row | {"case": pooling, "op": "max_pool2d", "bytes": 8_000_000}
    store.add("timings.jsonl", _record(pooling, row=row))
    store.run["ceilings"] = {"copy_gb_s": 4000.0}
    store.add("hardware.jsonl", _record("device properties", records=[{"name": "device", "gpu": "H200"}]))
    store.add("hardware.jsonl", _record("golden_warp mma", records=[{"name": "golden_mma", "a": "00"}]))
    return store


def test_what_is_kept_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "choices.json"
    table.write_text('{"devices": {}}\n')
    monkeypatch.setattr("benchmarks.choices.table.TABLE", table)
    _measured_run(tmp_path / "run")
    said = keep.keep(tmp_path / "run", tmp_path / "results", tmp_path / "golden")
    kept = tmp_path / "results" / "nvidia-h200"
    assert {path.name for path in kept.iterdir()} == {"run.json", "checks.jsonl", "first_light.json", "benchmarks.json"}
    assert json.loads((kept / "first_light.json").read_text())["measurements"] == [{"name": "device", "gpu": "H200"}]
    assert (tmp_path / "golden" / "mma.jsonl.gz").exists()
    assert json.loads(table.read_text())["devices"]["NVIDIA H200"] == {"fprop/k": ["hopper", "128x256", 1, 5.0]}
    assert "1 entries of NVIDIA H200" in said


def test_a_rehearsal_is_not_kept(tmp_path: Path) -> None:
    Store(tmp_path, {**ENVIRONMENT, "device_type": "cpu"})
    with pytest.raises(ValueError, match="the emulator's"):
        keep.keep(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json"):
        keep.keep(tmp_path / "nowhere")


def test_the_summary_of_a_gpu_shows_prediction_beside_outcome(tmp_path: Path) -> None:
    said = summary.text(_measured_run(tmp_path), left=[])
    assert re.search(r"5\.0 +10\.0 +2\.00 +hopper 128x256: 5 \(4\)", said)
    assert re.search(r"max_pool2d/.* 2\.00 +as a copy: 2\.0", said)
    assert "never launched" in said


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [("80", (8, 6), True), ("90a", (10, 0), False), ("90a", (9, 0), True), ("90", (8, 0), False)],
)
def test_kernels_of_other_cards_are_not_asked_for(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert summary._runs(architecture, capability) is runs


def test_the_hardware_is_measured_by_programs_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = tmp_path / "build" / "first_light"
    binaries.mkdir(parents=True)
    program = binaries / "fake"
    program.write_text('#!/bin/sh\necho \'{"name": "golden_x", "a": 1}\'\ntest $1 = good\n')
    program.chmod(0o755)
    monkeypatch.setattr(phases.programs, "ROOT", tmp_path)
    monkeypatch.setattr(phases.programs, "MEASUREMENTS", (Measurement("fake", "good"), Measurement("fake", "bad")))
    plan = phases.Plan(Store(tmp_path / "run", ENVIRONMENT), "cuda", 8, 1, 0, time.monotonic())
    assert phases.run_hardware(plan) == {}
    good, bad = plan.store.lines["hardware.jsonl"]
    assert (good["outcome"], bad["outcome"]) == ("right", "failed")
    assert good["records"] == [{"name": "golden_x", "a": 1}]
    program.unlink()
    plan = replace(plan, store=Store(tmp_path / "another", ENVIRONMENT))
    assert "fake not in" in phases.run_hardware(plan)["note"]
