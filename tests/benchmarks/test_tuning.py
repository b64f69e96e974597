"""The search for the fastest configurations: what its strategies find and spend, how it resumes, and what it writes."""

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

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.cli import main
from benchmarks.environment import describe
from benchmarks.ops import parse
from benchmarks.results import ForeignError
from benchmarks.suites import select
from benchmarks.tuning import strategies, table
from benchmarks.tuning.problem import FUNCTIONS, Prepared, distinct
from benchmarks.tuning.search import Search, search
from benchmarks.tuning.strategies import MANY, grid, halving
from benchmarks.tuning.table import summary, write
from torch_unroll.engines import cuda
from torch_unroll.kernels import planning
from torch_unroll.kernels.planning import Configuration
from torch_unroll.kernels.table import OPS

CPU = torch.device("cpu")
CANDIDATES = [Configuration("mma", tile, splits) for tile in ("128x128", "64x64") for splits in range(1, 9)]
CASES = [
    parse(f"conv2d/{direction}/fp32/nchw/N=1,C=8,H=5,W=5,K={K},R=3,S=3") for direction in ("fprop", "wgrad") for K in (8, 16)
]
needs_emulator = pytest.mark.skipif(not cuda.library_path("cpu").exists(), reason="python kernels/build.py emulated")


class Clock:
    """A timer of configurations whose true times are known, with noise that more samples reduce; counts its samples and calls."""

    def __init__(self, best: Configuration, noise: float = 0.2):
        self.best, self.noise, self.samples, self.calls = best, noise, 0, 0
        self.random = Random(0)

    def __call__(self, timed: Sequence[Configuration], samples: int) -> dict[Configuration, float]:
        self.samples += samples * len(timed)
        self.calls += 1
        return {one: self.true(one) * (1 + self.noise * self.random.uniform(-1, 1) / samples) for one in timed}

    def true(self, configuration: Configuration) -> float:
        return 1e-5 if configuration == self.best else 1e-5 * (1.2 + 0.1 * CANDIDATES.index(configuration))


@pytest.mark.parametrize("best", CANDIDATES)
def test_grid_and_halving_find_the_best_and_halving_spends_less(best: Configuration) -> None:
    all_of_them, few_of_them = Clock(best), Clock(best)
    fastest, seconds = grid(CANDIDATES, all_of_them)
    assert fastest == best
    assert set(seconds) == set(CANDIDATES)
    fastest, seconds = halving(CANDIDATES, few_of_them)
    assert fastest == best
    assert set(seconds) == set(CANDIDATES)
    assert few_of_them.samples <= all_of_them.samples / 2
    assert all_of_them.samples == MANY * len(CANDIDATES)


def test_halving_of_one_and_two() -> None:
    for count in (1, 2):
        clock = Clock(CANDIDATES[count - 1])
        assert halving(CANDIDATES[:count], clock)[0] == CANDIDATES[count - 1]


def test_random_takes_a_seeded_share_and_what_was_predicted_fastest() -> None:
    clock = Clock(CANDIDATES[0])
    best, seconds = strategies.random(CANDIDATES, clock, "a")
    assert best == CANDIDATES[0]
    assert len(seconds) == 1 + round(0.25 * 15)
    assert seconds.keys() == strategies.random(CANDIDATES, Clock(best), "a")[1].keys()
    assert any(seconds.keys() != strategies.random(CANDIDATES, Clock(best), other)[1].keys() for other in "bcd")


class Fake:
    """A problem whose candidates are made up."""

    def __init__(self, case: Case, wrong: dict[Configuration, str] | None = None, best: Configuration = CANDIDATES[5]):
        self.case, self.key, self.configurations = case, f"key of {case.key}", list(CANDIDATES)
        self.by_model, self.wrong, self.time = CANDIDATES[0], wrong or {}, Clock(best)

    def complaint(self, configuration: Configuration) -> str | None:
        return self.wrong.get(configuration)


def test_what_is_wrong_is_reported_and_not_timed() -> None:
    activities: list[str] = []
    row = search(Fake(CASES[0], {CANDIDATES[5]: "too far from float64"}), grid, activities.append)  # type: ignore[arg-type]
    assert activities == [*(f"checking {configuration}" for configuration in CANDIDATES), "timing"]
    assert row["wrong"] == {"mma 128x128, 6 splits": "too far from float64"}
    assert "mma 128x128, 6 splits" not in row["us"]
    assert row["best"][:3] == ["mma", "128x128", 1]
    assert row["best"][3] == pytest.approx(12, rel=0.1)
    nothing = search(Fake(CASES[0], dict.fromkeys(CANDIDATES, "wrong")), grid, activities.append)  # type: ignore[arg-type]
    assert nothing["best"] is None


#: By name, what happens while the second candidate of a case is checked; `Fakes.fates` assigns the names to cases.
FATES: dict[str, Callable[[], Any]] = {
    "exception": lambda: {}["no luck"],
    "hang": lambda: time.sleep(600),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(9),
}


class Planted(Fake):
    """A problem whose fate, if it has one, strikes while its second candidate is checked."""

    def __init__(self, case: Case, fate: str):
        super().__init__(case)
        self.fate = fate

    def complaint(self, configuration: Configuration) -> str | None:
        if configuration == CANDIDATES[1] and self.fate:
            FATES[self.fate]()
        return super().complaint(configuration)


@dataclass(frozen=True)
class Fakes:
    """Makes problems and lists their cases in a file; it can be pickled, so it also works in a separate process."""

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
        ("exception", 30, "KeyError: 'no luck', checking mma 128x128, 2 splits"),
        ("hang", 4, "no end within 4 s, checking mma 128x128, 2 splits"),
        ("crash", 30, "signal 11 (SIGSEGV), checking mma 128x128, 2 splits"),
        ("exit", 30, "exit status 9, checking mma 128x128, 2 splits"),
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
    assert "3 of 4 cases have a best configuration" in summary(document)
    (said,) = (tmp_path / "out" / "choices.json.output").iterdir()
    assert "K=16" in said.name
    searched(tmp_path, prepare)
    assert prepare.made() == [case.key for case in CASES], "what has failed is not tried again"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C raise KeyboardInterrupt even if a shell runs the tests in the background, where the signal is ignored."""
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


def test_distinct_problems_have_no_bias_and_one_layer() -> None:
    selected = select(["alexnet", "lenet5", "unrolling", "pooling", "rnn"], ["bf16"], ["nchw"])
    cases = distinct([case.case for case in selected])
    assert {(case.op, case.direction) for case in cases} == set(FUNCTIONS)
    assert not any(case.shape.bias for case in cases if case.op == "conv2d")
    assert {case.shape.layers for case in cases if case.op == "rnn"} == {1}
    assert len({case.key for case in cases}) == len(cases)


# ---- the table -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that holds the tables of this test, `<op>.json`, empty at first."""
    for op in OPS:
        (tmp_path / f"{op}.json").write_text(table.text({}))
    for module in (table, planning):
        monkeypatch.setattr(module, "table_path", lambda op: tmp_path / f"{op}.json")
    planning.forget()
    yield tmp_path
    planning.forget()


def measured(key: str, best: list[Any] | None, device: str = "NVIDIA H200") -> dict[str, Any]:
    row = {"case": key, "key": key, "best": best, "us": {}, "wrong": {}, "model": ["mma", "64x64", 1]}
    return {"environment": {"device": device, "device_type": "cuda"}, "problems": {key: row}}


def test_what_a_gpu_measured_is_entered_and_replaces_what_was_there(tables: Path) -> None:
    write(measured("conv2d_fprop/a", ["mma", "64x64", 2, 9.5]))
    write(measured("conv2d_dgrad/b", ["wgmma", "128x256", 1, 7.0]))
    write(measured("conv2d_fprop/a", ["mma", "128x128", 1, 8.5]))
    write(measured("conv2d_fprop/c", None))
    write(measured("conv2d_fprop/a", ["mma", "64x64", 1, 20.0], "NVIDIA A100-SXM4-80GB"))
    write(measured("rnn_forward/a", ["cluster", "2", 1, 5.0]))
    devices = json.loads((tables / "conv2d.json").read_text())["devices"]
    assert devices["NVIDIA H200"] == {
        "conv2d_fprop/a": ["mma", "128x128", 1, 8.5],
        "conv2d_dgrad/b": ["wgmma", "128x256", 1, 7.0],
    }
    assert devices["NVIDIA A100-SXM4-80GB"] == {"conv2d_fprop/a": ["mma", "64x64", 1, 20.0]}
    entries = planning.measured("conv2d")["NVIDIA H200"]
    assert entries["conv2d_fprop/a"] == (Configuration("mma", "128x128", 1), pytest.approx(8.5e-6))
    assert planning.measured("rnn")["NVIDIA H200"]["rnn_forward/a"][0] == Configuration("cluster", "2", 1)
    assert planning.measured("max_pool2d") == {}


@pytest.mark.parametrize("op", OPS)
def test_the_shipped_tables_are_as_the_search_writes_them(op: str) -> None:
    shipped = planning.table_path(op).read_text()
    assert table.text(json.loads(shipped)["devices"]) == shipped


def test_a_cpu_writes_no_table(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choices", "--suite", "lenet5", "--device", "cpu", "--write"]) == 2
    assert "--write: the table holds what a GPU has measured, and this search runs on the CPU" in capsys.readouterr().err
    document = measured("conv2d_fprop/a", ["mma", "64x64", 2, 9.5])
    document["environment"]["device_type"] = "cpu"
    with pytest.raises(ValueError, match="what a GPU has measured"):
        write(document)
    assert (tables / "conv2d.json").read_text() == table.text({})


def test_an_op_without_variants_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choices", "--op", "unfold", "--device", "cpu"]) == 2
    assert (
        "--op: expected an op that has variants to choose from (conv2d, max_pool2d, rnn), got unfold" in capsys.readouterr().err
    )


@needs_emulator
@pytest.mark.usefixtures("switches_may_be_set")
@pytest.mark.parametrize(
    ("case", "function"),
    [
        ("max_pool2d/fprop/fp16/channels_last/N=2,C=16,H=12,W=12,window=3,stride=2,padding=1", "max_pool2d_forward"),
        ("max_pool2d/dgrad/fp32/nchw/N=2,C=3,H=12,W=12,window=2,stride=2", "max_pool2d_backward"),
        ("max_pool2d/fprop/fp32/nchw/N=1,C=2,H=40,W=9,window=33x3,stride=1", "max_pool2d_forward"),
        ("rnn/fprop/fp16/nchw/T=3,N=3,I=40,H=40", "rnn_forward"),
        ("rnn/train/fp32/nchw/T=3,N=3,I=40,H=40,directions=2", "rnn_backward"),
    ],
)
def test_pooling_and_recurrence_are_tuned_like_convolution(case: str, function: str) -> None:
    (canonical,) = distinct([parse(case)])
    prepared = Prepared(canonical, CPU, "cuda", 0)
    assert prepared.key is not None
    assert prepared.key.startswith(f"{function}/")
    assert len({configuration.variant for configuration in prepared.configurations}) > 1
    assert prepared.by_model in prepared.configurations
    row = search(prepared, grid_once, lambda doing: None)
    assert row["wrong"] == {}
    assert len(row["us"]) == len(prepared.configurations)


def grid_once(configurations: Sequence[Configuration], timer: Any) -> tuple[Configuration, dict[Configuration, float]]:
    seconds = timer(configurations, 1)
    return min(seconds, key=seconds.__getitem__), seconds


@needs_emulator
@pytest.mark.parametrize("strategy", ["grid", "random", "halving"])
def test_a_dry_run_on_the_emulator(strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "choices.json"
    arguments = ["choices", "--suite", "lenet5", "--device", "cpu", "--strategy", strategy, "--out", str(out)]
    arguments += ["--op", "conv2d", "--dtype", "fp16", "--case", "C=6,"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    rows = json.loads(out.read_text())["problems"].values()
    assert {row["key"].partition("/")[0] for row in rows} == {"conv2d_fprop", "conv2d_dgrad", "conv2d_wgrad"}
    for row in rows:
        assert row["wrong"] == {}
        assert {*row["us"]} >= {str(Configuration(*row["best"][:3]))}
        assert row["best"][3] > 0
    assert "a dry run" in said.out
    assert main(arguments) == 0
    assert "continuing: " in capsys.readouterr().err


@pytest.mark.gpu
def test_a_search_on_a_gpu(tmp_path: Path, tables: Path) -> None:
    out = tmp_path / "choices.json"
    arguments = ["choices", "--suite", "resnet50", "--dtype", "bf16", "--layout", "channels_last", "--out", str(out), "--write"]
    assert main([*arguments, "--case", "N=32,C=512,H=7,W=7,K=512"]) == 0
    entries = json.loads((tables / "conv2d.json").read_text())["devices"][torch.cuda.get_device_name()]
    assert len(entries) == 3
    assert all(microseconds > 0 for *_, microseconds in entries.values())
