"""The results of a run on a GPU: timings, a summary, what is kept in the repository, and the second run."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.first_light import programs
from benchmarks.first_light.programs import Measurement
from benchmarks.gpu import keep, once, outcome, phases, summary, then, timings
from benchmarks.gpu.exact.cases import from_json
from benchmarks.gpu.store import Store
from benchmarks.isolation import Outcome
from benchmarks.tuning.problem import Prepared
from tests.benchmarks.gpu_runs import CPU, ENVIRONMENT, first_of, record_of
from torch_unroll.engines import refusal

pytestmark = pytest.mark.skipif(
    refusal("cuda", "rnn", CPU, torch.float32) is not None,
    reason="the emulated kernels are not built: python kernels/build.py emulated",
)


def _measured_run(folder: Path) -> Store:
    store = Store(folder, {**ENVIRONMENT, "time": "2026-01-01"})
    key = "conv2d/fprop/bf16/channels_last/N=1,C=8,H=4,W=4,K=8,R=1,S=1"
    store.add("checks.jsonl", record_of("cuda: x", rows=["k<float>"], counts={"right": 3}))
    tiles = {"key": "conv2d_fprop/k", "best": ["wgmma", "128x256", 1, 5.0], "us": {"wgmma 128x256": 5.0}, "wrong": {}}
    tiles |= {"predicted_us": {"wgmma 128x256": 4.0}, "case": key, "model": ["wgmma", "128x256", 1]}
    providers = {"cuda": {"status": "ok", "cold": {"median": 5.0}}, "eager": {"status": "ok", "cold": {"median": 10.0}}}
    row = {"case": key, "op": "conv2d", "direction": "fprop", "status": "ok", "providers": providers, "ratios": {}}
    store.add("timings.jsonl", record_of(key, row=row, tiles=tiles))
    pooling = "max_pool2d/fprop/bf16/channels_last/N=1,C=8,H=4,W=4,window=2,stride=2"
    row = row | {"case": pooling, "op": "max_pool2d", "bytes": 8_000_000}
    store.add("timings.jsonl", record_of(pooling, row=row))
    store.add("timings.jsonl", record_of("ceilings", ceilings={"copy_gb_s": 4000.0}))
    store.add("hardware.jsonl", record_of("device properties", records=[{"name": "device", "gpu": "H200"}]))
    partly = record_of("golden_warp matrices", "failed", records=[{"name": "golden_ldmatrix", "a": "00"}])
    store.add("hardware.jsonl", partly | {"detail": "exit status 1"})
    store.add("hardware.jsonl", record_of("golden_warp mma", records=[{"name": "golden_mma", "a": "00"}]))
    return store


def test_what_is_kept_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "choices.json"
    table.write_text('{"devices": {}}\n')
    monkeypatch.setattr("benchmarks.tuning.table.table_path", lambda op: table)
    _measured_run(tmp_path / "run")
    said = keep.keep(tmp_path / "run", tmp_path / "results", tmp_path / "golden")
    kept = tmp_path / "results" / "nvidia-h200"
    assert {path.name for path in kept.iterdir()} == {"run.json", "checks.jsonl", "first_light.json", "benchmarks.json"}
    assert json.loads((kept / "first_light.json").read_text())["measurements"] == [{"name": "device", "gpu": "H200"}]
    assert [path.name for path in (tmp_path / "golden").iterdir()] == ["mma.jsonl.gz"]
    assert json.loads(table.read_text())["devices"]["NVIDIA H200"] == {"conv2d_fprop/k": ["wgmma", "128x256", 1, 5.0]}
    assert "1 entries of NVIDIA H200" in said


def test_a_rehearsal_is_not_kept(tmp_path: Path) -> None:
    Store(tmp_path, {**ENVIRONMENT, "device_type": "cpu"})
    with pytest.raises(ValueError, match="the emulator's"):
        keep.keep(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json"):
        keep.keep(tmp_path / "nowhere")


def test_the_summary_of_a_gpu_shows_prediction_beside_outcome(tmp_path: Path) -> None:
    said = summary.text(_measured_run(tmp_path), left=[])
    assert re.search(r"5\.0 +10\.0 +2\.00 +wgmma 128x256: 5 \(4\)", said)
    assert re.search(r"max_pool2d/.* 2\.00 +as a copy: 2\.0", said)
    assert "never launched" in said


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [("80", (8, 6), True), ("90a", (10, 0), False), ("90a", (9, 0), True), ("90", (8, 0), False)],
)
def test_kernels_of_other_cards_are_not_asked_for(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert summary.runs(architecture, capability) is runs


@pytest.mark.usefixtures("switches_may_be_set")
@pytest.mark.parametrize(
    ("status", "expected"),
    [("ok", "right"), ("checked", "right"), ("wrong", "wrong"), ("error", "error"), ("out of memory", "error")],
)
def test_a_timing_that_was_wrong_is_no_right_one(
    status: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"status": status, "providers": {"cuda": {"status": status, "message": "why"}}}
    monkeypatch.setattr(timings, "measure_case", lambda *_: row)
    timings.run_timing(next(key for key in timings.first(small=True) if key.startswith("rnn")), "cpu", 0)
    (tmp_path / "said.txt").write_text(capsys.readouterr().out)
    record = outcome.read("a case", tmp_path / "said.txt", Outcome("ended", "", 1.0))
    assert record["outcome"] == expected
    assert record["row"]["status"] == status


@pytest.mark.usefixtures("switches_may_be_set")
def test_tiles_carry_times_predictions_and_what_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(self: Prepared, configuration: Any) -> str | None:
        return "too far from float64" if configuration.variant == "simt" else None

    monkeypatch.setattr(Prepared, "complaint", complaint)
    timings.run_timing(next(key for key in timings.first(small=True) if key.startswith("conv2d")), "cpu", 0)
    (tmp_path / "said.txt").write_text(capsys.readouterr().out)
    record = outcome.read("a case", tmp_path / "said.txt", Outcome("ended", "", 1.0))
    assert record["outcome"] == "wrong"
    assert "simt" in record["detail"]
    assert record["tiles"]["us"].keys() <= record["tiles"]["predicted_us"].keys()
    assert any("wgmma" in configuration for configuration in record["tiles"]["us"])


def _tool(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize(("status", "expected"), [(86, "the sanitizer found errors"), (1, "exit status 1"), (0, "")])
def test_a_failing_case_is_run_again_under_memcheck(
    status: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _tool(tmp_path, "compute-sanitizer", f'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@"; exit {status}', monkeypatch)
    case = first_of("rnn forward").as_json()
    then.run_tool(("compute-sanitizer", "--tool", "memcheck", "python", json.dumps(case)))
    said = capfd.readouterr().out
    assert said.startswith("1 --tool memcheck")
    (tmp_path / "said.txt").write_text(said)
    record = outcome.read("memcheck", tmp_path / "said.txt", Outcome("ended", "", 1.0))
    assert record["detail"] == expected
    assert outcome.end(tmp_path / "said.txt").startswith("1 --tool memcheck")


def test_the_second_run_asks_what_the_first_one_found(tmp_path: Path) -> None:
    plan = phases.Plan(Store(tmp_path, ENVIRONMENT), "cuda", 4, 8, 0, time.monotonic())
    with pytest.raises(ValueError, match="without --then"):
        then.tools(plan)
    plan.store.add("checks.jsonl", record_of("cuda: rnn_cell"))
    right = [tool.name for tool in then.tools(plan)]
    assert [name.split()[0] for name in right] == ["ncu"] * 3 + ["pytest", "choices"]
    case = {"outcome": "wrong", "case": first_of("conv2d").as_json(), "detail": "d", "evidence": []}
    plan.store.add("checks.jsonl", record_of("cuda: conv2d fprop wgmma 128x256", "wrong", cases=[case]))
    (tool,) = then.tools(plan)
    assert tool.command[0] == "compute-sanitizer"
    assert from_json(json.loads(tool.command[tool.command.index("case") + 1])) == first_of("conv2d")


@pytest.mark.parametrize(("wanted", "expected"), [("numba", True), ("cupy", True), ("ceilings", True), ("zzzz", False)])
def test_a_run_that_selects_nothing_is_recognised(tmp_path: Path, wanted: str, expected: bool) -> None:
    plan = phases.Plan(Store(tmp_path, ENVIRONMENT), "cuda", 4, 8, 0, time.monotonic(), only=lambda key: wanted in key)
    assert phases.anything(plan, ["cuda", "cupy", "numba"]) == expected
    assert phases.anything(plan, ["cuda"]) == (expected and wanted == "ceilings")


def test_one_case_ends_with_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.dumps(first_of("rnn forward").as_json())
    once.main("case", case, "cuda", "cpu")
    monkeypatch.setattr(once, "run_case", lambda *_: False)
    with pytest.raises(SystemExit):
        once.main("case", case, "cuda", "cpu")


def test_the_hardware_is_measured_by_programs_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = tmp_path / "build" / "first_light"
    binaries.mkdir(parents=True)
    program = binaries / "fake"
    program.write_text('#!/bin/sh\necho \'{"name": "golden_x", "a": 1}\'\ntest $1 = good\n')
    program.chmod(0o755)
    monkeypatch.setattr(phases.programs, "ROOT", tmp_path)
    monkeypatch.setattr(phases.programs, "MEASUREMENTS", (Measurement("fake", "good"), Measurement("fake", "bad")))
    plan = phases.Plan(Store(tmp_path / "run", ENVIRONMENT), "cuda", 8, 1, 0, time.monotonic())
    assert "fake in" in phases.run_hardware(plan)["note"]  # the sources of the program are unknown
    programs.digest_file(binaries, "fake").write_text(programs.sources_digest())
    assert phases.run_hardware(plan) == {}
    good, bad = plan.store.lines["hardware.jsonl"]
    assert (good["outcome"], bad["outcome"]) == ("right", "failed")
    assert good["records"] == [{"name": "golden_x", "a": 1}]
    plan = replace(plan, store=Store(tmp_path / "another", ENVIRONMENT | {"capability": [8, 6]}))
    assert "compute capability 9.0" in phases.run_hardware(plan)["note"]
