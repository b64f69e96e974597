"""A run on a GPU, rehearsed on the emulator: a fault in a job is reported as what it is, and affects no other job."""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cli
from benchmarks.gpu import command, outcome, phases, place, summary, work
from benchmarks.gpu.exact.cases import from_json
from benchmarks.gpu.store import Store, alone, load_run
from benchmarks.gpu.work import ExactJob
from benchmarks.isolation import Outcome
from benchmarks.results import ForeignError
from tests.benchmarks.gpu_runs import CPU, ENVIRONMENT, Broken, record_of
from torch_unroll.engines import cuda, refusal

pytestmark = pytest.mark.skipif(
    refusal("cuda", "rnn", CPU, torch.float32) is not None,
    reason="the emulated kernels are not built: python kernels/build.py emulated",
)


# ---- faults planted in jobs -------------------------------------------------------------------------------------------------

HANGS, CRASHES, WRONG, UNSTEADY, RAISES = (
    f"rnn forward step {arithmetic}" for arithmetic in ("float16", "bfloat16", "tf32", "float32", "float64")
)
LACKS, RIGHT = "rnn backward step float16", "rnn backward step bfloat16"


def _crash() -> None:
    ctypes.string_at(0)


def planted(job: ExactJob) -> None:
    """Runs a job with the fault that its name selects."""
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
    engine = Broken(spoil)
    work.load = lambda _: engine
    work.CASE_SECONDS = 8.0
    work.covering = lambda cases, *_: cases[:4]
    work.run_exact(job)


def _options(out: Path, *more: str) -> argparse.Namespace:
    return command.make_parser().parse_args(["--device", "cpu", "--minutes", "2", "--out", str(out), "--processes", "2", *more])


def _reported(out: Path) -> dict[str, dict[str, Any]]:
    return {record["job"]: record for record in map(json.loads, (out / "checks.jsonl").read_text().splitlines())}


def test_each_planted_fault_is_reported_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phases, "EXACT_SECONDS", 60.0)
    monkeypatch.setattr(phases, "CONTINUATIONS", 1)
    options = _options(tmp_path, "--only", "rnn (forward|backward) step (float|b|tf)")
    assert command.run(options, exact=planted) == 1
    reported = _reported(tmp_path)
    hung = reported[f"cuda: {HANGS} (up to case 1)"]
    assert (hung["outcome"], hung["cases"][0]["case"]["arithmetic"]) == ("hung", "float16")
    assert reported[f"cuda: {HANGS}"]["outcome"] == "hung"  # the job hangs again when it continues after that case
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

    began = time.monotonic()  # the same command has nothing left to do
    assert command.run(options, exact=planted) == 1
    assert time.monotonic() - began < 60
    assert _reported(tmp_path) == reported


def test_jobs_without_time_are_left_and_done_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _options(tmp_path, "--only", "rnn_cell forward|^rnn/")
    monkeypatch.setattr(phases, "ENDS_EMULATED", dict.fromkeys(phases.ENDS, 0.0))
    assert command.run(options) == 1
    assert "5 jobs of engine cuda" in capsys.readouterr().out
    monkeypatch.undo()
    assert command.run(options) == 1  # all selected jobs are right, but most kernels were never launched
    printed = capsys.readouterr().out
    assert "never launched" in printed
    assert "left:" not in printed
    assert {record["outcome"] for record in _reported(tmp_path).values()} == {"right"}


# ---- the folder of a run ----------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path, ENVIRONMENT)
    for name in ("a", "b"):
        store.add("checks.jsonl", record_of(name))
    content = (tmp_path / "checks.jsonl").read_bytes()
    for cut in (1, 2, 30):
        (tmp_path / "checks.jsonl").write_bytes(content[:-cut])
        assert list(Store(tmp_path, ENVIRONMENT).done("checks.jsonl")) == ["a"]
        Store(tmp_path, ENVIRONMENT).add("checks.jsonl", record_of("c"))
        assert list(Store(tmp_path, ENVIRONMENT).done("checks.jsonl")) == ["a", "c"]


@pytest.mark.parametrize("name", ["device", "driver", "engine_digest", "torch", "seed"])
def test_another_run_is_not_mixed_in(tmp_path: Path, name: str) -> None:
    Store(tmp_path, ENVIRONMENT).add("checks.jsonl", record_of("a"))
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
    store.add("checks.jsonl", record_of("a", "wrong", cases=[{"outcome": "wrong", "evidence": ["x" * 2000]}]))
    (kept,) = Store(tmp_path, ENVIRONMENT).lines["checks.jsonl"]
    assert kept["outcome"] == "wrong"
    assert kept["cases"][0]["evidence"] == []


# ---- the outcome of a job ----------------------------------------------------------------------------------------------------

BEGIN = '{"event": "begin", "number": 4, "case": {"op": "rnn"}}'
GOOD = '{"event": "good", "outcome": "right", "detail": "", "rows": ["k<float>"]}'
END = '{"event": "end", "rows": ["k<float>"]}'


@pytest.mark.parametrize(
    ("lines", "process", "expected"),
    [
        ([BEGIN, GOOD, END], Outcome("ended", "", 1.0), "right"),
        ([GOOD, BEGIN, "Timeout (0:00:30)!", "stacks"], Outcome("failed", "exit status 1", 31.0), "hung"),
        ([GOOD, BEGIN, "Traceback", BEGIN[:20]], Outcome("crashed", "signal 11 (SIGSEGV)", 1.0), "crashed"),
        ([BEGIN], Outcome("hung", "no end within 60 s", 60.0), "hung"),
        ([BEGIN, '{"event": "error", "case": {}, "detail": "x"}', '{"event": "lost"}'], Outcome("failed", "", 1.0), "lost"),
        ([], Outcome("failed", "ImportError: no torch", 1.0), "failed"),
        (['{"event": "verdict", "outcome": "wrong", "detail": "a tile"}'], Outcome("ended", "", 1.0), "wrong"),
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
    if GOOD in lines:
        assert (record["counts"]["right"], record["rows"]) == (1, ["k<float>"])
    if expected in ("hung", "crashed"):
        assert record["died_in"] == 4
        assert record["cases"][-1]["case"] == {"op": "rnn"}
    if expected == "crashed":
        assert "Traceback" in record["output"]
    if expected == "lost":
        assert record["detail"] == "x"
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


def test_kernels_of_other_sources_are_not_proven(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.stale(CPU) is None
    monkeypatch.setattr(cuda, "device_digest", lambda: "of sources that changed")
    place.look("cpu")
    assert "built from other sources" in json.loads(capsys.readouterr().out)["lack"]


def test_a_place_that_others_use_may_be_shared() -> None:
    place.require_place(SEEN | {"processes": ["123, python, 500 MiB"], "free_bytes": 1 << 30}, shared=True)


def test_a_disk_that_fills_up_is_no_failure_of_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, ENVIRONMENT)
    store.add("checks.jsonl", record_of("a"))
    monkeypatch.setattr("benchmarks.gpu.store.LEAST_FREE_BYTES", 1 << 62)
    with pytest.raises(OSError, match=r"the disk is full; .* the same command continues"):
        store.add("checks.jsonl", record_of("b", "failed"))
    assert list(Store(tmp_path, ENVIRONMENT).done("checks.jsonl")) == ["a"]


def test_a_pattern_that_no_job_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu", "--device", "cpu", "--out", str(tmp_path), "--only", "zzzz"]) == 2
    assert "--only 'zzzz'" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".jobs-left").mkdir()
    with alone(tmp_path):
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="another run is at work"), alone(tmp_path):
            pass
    with alone(tmp_path):
        pass


def test_a_full_disk_is_noticed_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["gpu", "--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
