"""The training command resumes with bitwise equal results after kill -9, shares batches between processes, and explains
errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image

from torch_unroll.training import checkpoint, train
from torch_unroll.training.train import Run, Settings

PACKAGE = Path(__file__).parents[2] / "pyext"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three classes of twelve noisy grey squares."""
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(("dark", "grey", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(12):
            noise = torch.randint(0, 60, (32, 32), generator=generator) + 90 * number
            Image.fromarray(noise.clamp(0, 255).byte().numpy()).save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def _settings(data: Path, path: Path, **changes: object) -> Settings:
    return Settings("lenet5", data, path, **{"epochs": 4, "batch": 6, "save_every": 5, **changes})  # type: ignore[arg-type]


def test_it_learns_and_a_second_run_has_nothing_left_to_do(pictures: Path, tmp_path: Path) -> None:
    settings = _settings(pictures, tmp_path / "run.pt", epochs=8, rate=0.01)
    losses = list(Run(settings).steps())
    assert len(losses) == 8 * 6
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    assert list(Run(settings).steps()) == []


def test_killed_it_continues_to_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    whole = Run(_settings(pictures, tmp_path / "whole.pt"))
    assert len(list(whole.steps())) == 24
    path = tmp_path / "killed.pt"
    arguments = [
        "--model",
        "lenet5",
        "--data",
        str(pictures),
        "--checkpoint",
        str(path),
        "--epochs",
        "4",
        "--batch",
        "6",
        "--save-every",
        "5",
    ]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    slow = "import sys, time, torch_unroll.training.train as t; once = t.Run.gradients"
    slow += "; t.Run.gradients = lambda run: (time.sleep(0.05), once(run))[1]; t.main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments], env=environment)
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = Run(_settings(pictures, path))
    assert 5 <= resumed.step < 24
    assert resumed.step % 5 == 0
    list(resumed.steps())
    for ours, theirs in zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not list(tmp_path.glob("*.part"))


def _shared(rank: int, data: Path, path: Path, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    run = Run(_settings(data, path / "shared.pt", rank=rank, processes=2))
    run.gradients()
    if rank == 0:
        torch.save([parameter.grad for parameter in run.network.parameters()], path / "gradients.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(pictures: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(_shared, (pictures, tmp_path, 29_000 + os.getpid() % 1000), nprocs=2)
    alone = Run(_settings(pictures, tmp_path / "alone.pt"))
    alone.gradients()
    shared = torch.load(tmp_path / "gradients.pt")
    for ours, theirs in zip(shared, alone.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("saved_on", ["cpu", "cuda"])
@pytest.mark.parametrize("resumed_on", ["cpu", "cuda"])
def test_random_states_are_restored_on_the_devices_that_have_them(
    saved_on: str, resumed_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's generator, here made up, is restored on a GPU, if a GPU saved it."""
    gpu = {"state": torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: gpu["state"].clone())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: gpu.update(state=state))
    before = torch.get_rng_state()
    try:
        state = checkpoint.random_state(torch.device(saved_on))
        numbers, gpu["state"] = torch.rand(5), torch.zeros(16, dtype=torch.uint8)
        checkpoint.set_random_state(state, torch.device(resumed_on))
        assert torch.equal(torch.rand(5), numbers)
    finally:
        torch.set_rng_state(before)
    assert gpu["state"].any() == (saved_on == resumed_on == "cuda")


def _refused(capsys: pytest.CaptureFixture[str], data: Path, path: Path, *more: str) -> str:
    status = train.main(
        ["--model", "lenet5", "--data", str(data), "--checkpoint", str(path), "--batch", "6", "--epochs", "1", *more]
    )
    assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert len(lines) == 1
    return lines[0]


class TestRefusals:
    """Each error is one line, and an existing checkpoint is preserved."""

    def test_missing_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "which is not there" in _refused(capsys, tmp_path / "nowhere", tmp_path / "run.pt")

    def test_no_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "expected a folder for each class" in _refused(capsys, tmp_path, tmp_path / "run.pt")

    def test_empty_class(self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (pictures / "none").mkdir()
        assert f"in {pictures / 'none'}, found none" in _refused(capsys, pictures, tmp_path / "run.pt")

    def test_corrupt_picture(self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.pt"
        Run(_settings(pictures, path, epochs=1)).save()
        before = path.read_bytes()
        (pictures / "dark" / "3.png").write_bytes(b"not a picture")
        assert "3.png, which does not open" in _refused(capsys, pictures, path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": "resnet18"}, "expected model 'lenet5', got 'resnet18'"),
            ({"processes": 2}, "expected processes 1, got 2"),
            ({"classes": ["a", "b"]}, "expected classes"),
        ],
    )
    def test_checkpoint_of_another_run(
        self, change: dict, message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "run.pt"
        run = Run(_settings(pictures, path, epochs=1))
        run.save()
        checkpoint.save(path, {**checkpoint.load(path, {}), **change})
        before = path.read_bytes()
        assert message in _refused(capsys, pictures, path)
        assert path.read_bytes() == before

    def test_unreadable_checkpoint(self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "run.pt"
        path.write_bytes(b"not a checkpoint")
        assert "which does not read" in _refused(capsys, pictures, path)
        assert path.read_bytes() == b"not a checkpoint"

    def test_wrong_world_size(
        self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert "expected a number below WORLD_SIZE 2, got 3" in _refused(capsys, pictures, tmp_path / "run.pt")

    def test_a_batch_that_cannot_be_shared(self, pictures: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="batch: expected a multiple of the 4 processes that share it, got 6"):
            Run(_settings(pictures, tmp_path / "run.pt", processes=4))

    def test_more_than_there_is(self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "at most the 36 pictures there are, got 64" in _refused(capsys, pictures, tmp_path / "run.pt", "--batch", "64")
