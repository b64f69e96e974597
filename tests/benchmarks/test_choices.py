"""The search for convolution's fastest choices: what its strategies find and spend, how it goes on, and what it writes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks import choices, results
from benchmarks.cases import Case, parse
from benchmarks.choices import MANY, Search, distinct, grid, halving, search, summary, write
from benchmarks.cli import main
from benchmarks.environment import describe
from benchmarks.results import ForeignError
from benchmarks.suites import select
from torch_unroll.engines import cuda
from torch_unroll.kernels import planning
from torch_unroll.kernels.planning import Configuration

CPU = torch.device("cpu")
CANDIDATES = [Configuration("mma", tile, splits) for tile in ("128x128", "64x64") for splits in range(1, 9)]
CASES = [
    parse(f"conv2d/{direction}/fp32/nchw/N=1,C=8,H=5,W=5,K={K},R=3,S=3") for direction in ("fprop", "wgrad") for K in (8, 16)
]
needs_emulator = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")


class Clock:
    """A timer of choices whose true times are known, with noise that more samples take away; counts what it is asked for."""

    def __init__(self, best: Configuration, noise: float = 0.2):
        self.best, self.noise, self.samples, self.calls = best, noise, 0, 0
        self.random = Random(0)

    def __call__(self, timed: Sequence[Configuration], samples: int) -> dict[Configuration, float]:
        self.samples += samples * len(timed)
        self.calls += 1
        return {each: self.true(each) * (1 + self.noise * self.random.uniform(-1, 1) / samples) for each in timed}

    def true(self, choice: Configuration) -> float:
        return 1e-5 if choice == self.best else 1e-5 * (1.2 + 0.1 * CANDIDATES.index(choice))


@pytest.mark.parametrize("best", CANDIDATES)
def test_grid_and_halving_find_the_best_and_halving_spends_less(best: Configuration) -> None:
    all_of_them, few_of_them = Clock(best), Clock(best)
    found, seconds = grid(CANDIDATES, all_of_them)
    assert found == best
    assert set(seconds) == set(CANDIDATES)
    found, seconds = halving(CANDIDATES, few_of_them)
    assert found == best
    assert set(seconds) == set(CANDIDATES)
    assert few_of_them.samples <= all_of_them.samples / 2
    assert all_of_them.samples == MANY * len(CANDIDATES)


def test_halving_of_one_and_two() -> None:
    for count in (1, 2):
        clock = Clock(CANDIDATES[count - 1])
        assert halving(CANDIDATES[:count], clock)[0] == CANDIDATES[count - 1]


def test_random_takes_a_seeded_share_and_what_was_predicted_fastest() -> None:
    clock = Clock(CANDIDATES[0])
    best, seconds = choices.random(CANDIDATES, clock, "a")
    assert best == CANDIDATES[0]
    assert len(seconds) == 1 + round(0.25 * 15)
    assert seconds.keys() == choices.random(CANDIDATES, Clock(best), "a")[1].keys()
    assert any(seconds.keys() != choices.random(CANDIDATES, Clock(best), other)[1].keys() for other in "bcd")


class Fake:
    """A problem whose candidates are made up."""

    def __init__(self, case: Case, wrong: dict[Configuration, str] | None = None, best: Configuration = CANDIDATES[5]):
        self.case, self.key, self.choices = case, f"key of {case.key}", list(CANDIDATES)
        self.by_model, self.wrong, self.time = CANDIDATES[0], wrong or {}, Clock(best)

    def complaint(self, choice: Configuration) -> str | None:
        return self.wrong.get(choice)


def test_what_is_wrong_is_told_and_not_timed() -> None:
    told: list[str] = []
    row = search(Fake(CASES[0], {CANDIDATES[5]: "too far from float64"}), grid, told.append)  # type: ignore[arg-type]
    assert told == [*(f"checking {choice}" for choice in CANDIDATES), "timing"]
    assert row["wrong"] == {"mma 128x128, 6 splits": "too far from float64"}
    assert "mma 128x128, 6 splits" not in row["us"]
    assert row["best"][:3] == ["mma", "128x128", 1]
    assert row["best"][3] == pytest.approx(12, rel=0.1)
    nothing = search(Fake(CASES[0], dict.fromkeys(CANDIDATES, "wrong")), grid, told.append)  # type: ignore[arg-type]
    assert nothing["best"] is None


#: What befalls the case that is named in the environment.
FATES: dict[str, Callable[[], Any]] = {
    "exception": lambda: {}["no luck"],
    "hang": lambda: time.sleep(600),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(9),
}


class Planted(Fake):
    """A problem that may meet its fate while its second candidate is checked."""

    def __init__(self, case: Case, fate: str):
        super().__init__(case)
        self.fate = fate

    def complaint(self, choice: Configuration) -> str | None:
        if choice == CANDIDATES[1] and self.fate:
            FATES[self.fate]()
        return super().complaint(choice)


@dataclass(frozen=True)
class Fakes:
    """Makes problems, and a list of them in a file; a process of its own takes it as it is."""

    log: Path
    fates: dict[str, str] = field(default_factory=dict)

    def __call__(self, case: Case, device: torch.device, engine: str, seed: int) -> Any:
        with self.log.open("a") as file:
            print(case.key, file=file)
        return Planted(case, self.fates.get(case.key, ""))

    def made(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


def seen(device: torch.device, path: Path) -> None:
    results.save({"environment": describe(device), "engine": "cuda"}, path)


def searched(tmp_path: Path, prepare: Fakes, *, strategy: str = "grid", **options: Any) -> dict[str, Any]:
    options = {"cases": CASES, "limit": 30.0, **options}
    return Search(
        device=CPU, strategy=strategy, out=tmp_path / "out" / "choices.json", prepare=prepare, survey=seen, **options
    ).go()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fate", "limit", "error"),
    [
        ("exception", 30, "KeyError: 'no luck', checking tensor 128x128, 2 splits"),
        ("hang", 4, "no end within 4 s, checking tensor 128x128, 2 splits"),
        ("crash", 30, "signal 11 (SIGSEGV), checking tensor 128x128, 2 splits"),
        ("exit", 30, "exit status 9, checking tensor 128x128, 2 splits"),
    ],
)
def test_a_case_that_fails_costs_itself_only(fate: str, limit: float, error: str, tmp_path: Path) -> None:
    prepare = Fakes(tmp_path / "log", {CASES[1].key: fate})
    document = searched(tmp_path, prepare, limit=limit)
    assert prepare.made() == [case.key for case in CASES]
    assert document["problems"][CASES[1].key]["error"] == error
    for case in (CASES[0], *CASES[2:]):
        assert document["problems"][case.key]["best"][:3] == list(CANDIDATES[5])
    assert f"failed: {CASES[1].key}: {error}" in summary(document)
    assert "3 of 4 cases have a best choice" in summary(document)
    (said,) = (tmp_path / "out" / "choices.json.output").iterdir()
    assert "K=16" in said.name
    searched(tmp_path, prepare)
    assert prepare.made() == [case.key for case in CASES], "what has failed is not tried again"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    out, prepare = tmp_path / "out" / "choices.json", Fakes(tmp_path / "log", {CASES[2].key: "hang"})

    def interrupt() -> None:
        while CASES[2].key not in prepare.made():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, prepare, limit=60.0)
    thread.join()
    assert list(json.loads(out.read_text())["problems"]) == [case.key for case in CASES[:2]]
    document = searched(tmp_path, Fakes(tmp_path / "second"))
    assert Fakes(tmp_path / "second").made() == [case.key for case in CASES[2:]]
    assert document == json.loads(out.read_text())
    assert len(document["problems"]) == len(CASES)
    assert not out.with_name("choices.json.output").exists()


def test_a_budget_stops_the_case_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = Fakes(tmp_path / "log", {CASES[1].key: "hang"})
    document = searched(tmp_path, prepare, minutes=0.2, limit=600.0)
    assert list(document["problems"]) == [CASES[0].key]
    assert "3 cases left" in capsys.readouterr().err


def test_a_search_that_no_engine_serves_says_so(tmp_path: Path) -> None:
    search = Search(CASES, torch.device("meta"), "grid", tmp_path / "choices.json")
    with pytest.raises(ValueError, match="no compiled engine runs here"):
        search.go()


def test_another_search_is_not_continued(tmp_path: Path) -> None:
    out, prepare = tmp_path / "out" / "choices.json", Fakes(tmp_path / "log")
    searched(tmp_path, prepare, cases=CASES[:1])
    with pytest.raises(ForeignError, match=r"left by another search \(strategy: grid → halving; seed: 0 → 1\)"):
        searched(tmp_path, prepare, strategy="halving", seed=1)
    for text in ("{", "[]", '{"schema": "torch-unroll-benchmarks", "version": 1}'):
        out.write_text(text)
        with pytest.raises(ForeignError):
            searched(tmp_path, prepare)


def test_a_budget_leaves_the_rest_for_another_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = Fakes(tmp_path / "log")
    searched(tmp_path, prepare, minutes=-1)
    assert not prepare.made()
    assert "4 cases left" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "nan"])
def test_a_limit_is_a_number_of_seconds(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choices", "--suite", "lenet5", "--device", "cpu", "--limit", limit]) == 2
    assert f"--limit: expected a number of seconds above 0, got {limit}" in capsys.readouterr().err


def test_distinct_problems_have_no_bias_and_no_training() -> None:
    cases = distinct(select(["alexnet", "lenet5", "unrolling", "pooling"], ["bf16"], ["nchw"]))
    assert {case.op for case in cases} == {"conv2d"}
    assert {case.direction for case in cases} == {"fprop", "dgrad", "wgrad"}
    assert not any(case.shape.bias for case in cases)
    assert len({case.key for case in cases}) == len(cases)


# ---- the table -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "table.json"
    path.write_text(planning.table_path("conv2d").read_text())
    monkeypatch.setattr(planning, "table_path", lambda op: path)
    return path


def measured(key: str, best: list[Any] | None, device: str = "NVIDIA H200") -> dict[str, Any]:
    row = {"case": key, "key": key, "best": best, "us": {}, "wrong": {}, "model": ["mma", "64x64", 1]}
    return {"environment": {"device": device, "device_type": "cuda"}, "problems": {key: row}}


def test_what_a_gpu_measured_is_entered_and_replaces_what_was_there(shipped: Path) -> None:
    write(measured("a", ["mma", "64x64", 2, 9.5]))
    write(measured("b", ["wgmma", "128x256", 1, 7.0]))
    write(measured("a", ["mma", "128x128", 1, 8.5]))
    write(measured("c", None))
    write(measured("a", ["mma", "64x64", 1, 20.0], "NVIDIA A100-SXM4-80GB"))
    devices = json.loads(shipped.read_text())["devices"]
    assert devices["NVIDIA H200"] == {"a": ["mma", "128x128", 1, 8.5], "b": ["wgmma", "128x256", 1, 7.0]}
    assert devices["NVIDIA A100-SXM4-80GB"] == {"a": ["mma", "64x64", 1, 20.0]}
    planning.forget()
    assert planning.measured("conv2d")["NVIDIA H200"]["a"] == (Configuration("mma", "128x128", 1), pytest.approx(8.5e-6))
    planning.forget()


def test_the_shipped_table_is_as_the_search_writes_it() -> None:
    text = planning.table_path("conv2d").read_text()
    assert choices._text(json.loads(text)["devices"]) == text


def test_a_cpu_writes_no_table(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = shipped.read_text()
    assert main(["choices", "--suite", "lenet5", "--device", "cpu", "--write"]) == 2
    assert "--write: the table holds what a GPU has measured, and this search runs on the CPU" in capsys.readouterr().err
    document = measured("a", ["mma", "64x64", 2, 9.5])
    document["environment"]["device_type"] = "cpu"
    with pytest.raises(ValueError, match="what a GPU has measured"):
        write(document)
    assert shipped.read_text() == before


@needs_emulator
@pytest.mark.parametrize("strategy", ["grid", "random", "halving"])
def test_a_dry_run_on_the_emulator(strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "choices.json"
    arguments = ["choices", "--suite", "lenet5", "--device", "cpu", "--strategy", strategy, "--out", str(out)]
    arguments += ["--dtype", "fp16", "--case", "C=6,"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    rows = json.loads(out.read_text())["problems"].values()
    assert {row["key"].partition("/")[0] for row in rows} == {"fprop", "dgrad", "wgrad"}
    for row in rows:
        assert row["wrong"] == {}
        assert {*row["us"]} >= {str(Configuration(*row["best"][:3]))}
        assert row["best"][3] > 0
    assert "a dry run" in said.out
    assert main(arguments) == 0
    assert "continuing: " in capsys.readouterr().err


@pytest.mark.gpu
def test_a_search_on_a_gpu(tmp_path: Path, shipped: Path) -> None:
    out = tmp_path / "choices.json"
    arguments = ["choices", "--suite", "resnet50", "--dtype", "bf16", "--layout", "channels_last", "--out", str(out), "--write"]
    assert main([*arguments, "--case", "N=32,C=512,H=7,W=7,K=512"]) == 0
    entries = json.loads(shipped.read_text())["devices"][torch.cuda.get_device_name()]
    assert len(entries) == 3
    assert all(microseconds > 0 for *_, microseconds in entries.values())
