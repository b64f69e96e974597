"""Tests the public interface with a type checker: right calls pass; misspelt arguments and wrong types do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = """
import torch
import torch_unroll as tu
import torch_unroll.nn as nn

x = torch.ones(1, 3, 8, 8)
w = torch.ones(4, 3, 3, 3)
h = torch.ones(1, 4)
"""

RIGHT = (
    "tu.conv2d(x, w, None, 2, 'same')",
    "tu.conv2d(x, w, stride=(2, 1), padding=[1, 2], dilation=1, groups=1, engine='torch')",
    "tu.conv_transpose2d(x, w, stride=2, output_padding=(1, 0))",
    "tu.unfold(x, (2, 3), padding=[1, 1])",
    "tu.fold(x, [8, 8], 2, stride=(2, 2))",
    "tu.max_pool2d(x, [2, 2], stride=None, return_indices=True)",
    "tu.rnn(x, None, [w, w], nonlinearity='relu', num_layers=1)",
    "tu.rnn_cell(h, h, w, w)",
    "tu.max_over_time(x, lengths=None)",
    "nn.Conv2d(3, 4, (3, 3), padding='same', padding_mode='reflect', device='meta', dtype=torch.float64, engine='torch')",
    "nn.ConvTranspose2d(3, 4, 3, 2, output_padding=1)",
    "nn.MaxPool2d(2, return_indices=True, ceil_mode=True)",
    "nn.Unfold((2, 3), stride=2)",
    "nn.Fold((4, 4), 2)",
    "nn.RNN(3, 4, 2, nonlinearity='relu', bidirectional=True, engine='torch')",
    "nn.RNNCell(3, 4, nonlinearity='relu', device='cpu')",
    "nn.LocallyConnected2d(3, 4, 8, (3, 3), device='cpu')",
    "nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)).add_module('pool', nn.AdaptiveAvgPool2d(1))",
    "nn.init.zeros_(nn.Parameter(x))",
    "nn.utils.clip_grad_norm_([x], 1.0)",
    "nn.functional.relu(x)",
    "tu.models.googlenet(num_classes=5, aux_logits=True, transform_input=True, weights=None, nn=torch.nn)",
    "tu.models.resnet50(weights=nn.Linear(1, 1).state_dict(), groups=32, width_per_group=4)",
    "tu.replace(nn.ReLU()).left.items()",
    "tu.restore(nn.ReLU()).notes.items()",
)

WRONG = (
    "tu.conv2d(x, w, paddings=1)",
    "tu.conv2d(x, w, stride=2.0)",
    "tu.conv2d(x, w, dilation='1')",
    "tu.conv_transpose2d(x, w, output_pad=1)",
    "tu.conv_transpose2d(x, w, padding='same')",
    "tu.unfold(x, 2, strides=1)",
    "tu.unfold(x, 2.5)",
    "tu.fold(x, 8, 2, pad=1)",
    "tu.fold(x, (8.0, 8), 2)",
    "tu.max_pool2d(x, 2, return_index=True)",
    "tu.max_pool2d(x, 2, padding=(0.5, 1))",
    "tu.rnn(x, None, [w], layers=2)",
    "tu.rnn_cell(h, h, w, w, activation='relu')",
    "tu.max_over_time(x, length=None)",
    "nn.Conv2d(3, 4, 3, strid=2)",
    "nn.Conv2d(3, 4, 3, stride=2.0)",
    "nn.Conv2d(3, 4, 3, padding_mode='mirror')",
    "nn.Conv2d(3, 4, 3, 1, 0, 1, 1, True, 'zeros', None, None, 'torch')",
    "nn.ConvTranspose2d(3, 4, 3, padding='same')",
    "nn.MaxPool2d(2, ceilmode=True)",
    "nn.MaxPool2d('2')",
    "nn.Unfold(2, strides=1)",
    "nn.Fold(4, 2.0)",
    "nn.RNN(3, 4, layers=2)",
    "nn.RNNCell(3, 4, nonlinear='relu')",
    "nn.LocallyConnected2d(3, 4, 8, 3, group=2)",
    "nn.LocallyConnected2d(3, 4, 8, 3, stride=1.5)",
    "nn.Linear(3, 4, biass=True)",
    "nn.Convolution2d(3, 4, 3)",
    "tu.models.alexnet(dropuot=0.1)",
    "tu.models.googlenet(heads=True)",
    "tu.models.resnet18(pretrained=True)",
    "tu.models.resnet34(num_classes='ten')",
    "tu.models.densenet121(weights='DEFAULT')",
    "tu.models.lenet5(classes=10)",
    "tu.models.cifar_resnet(20, residuals=False)",
    "tu.models.RecurrentNet(3, 4, 2, directions=2)",
    "tu.models.SequenceClassifier(3, 4, 2, classes=3)",
    "tu.replace(nn.ReLU(), inplace=True)",
    "tu.restore('model')",
)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Returns mypy's message for each line of the program that it refuses."""
    pytest.importorskip("mypy", reason="type checks need `pip install mypy`")
    folder = tmp_path_factory.mktemp("program")
    program = folder / "program.py"
    program.write_text("\n".join([*HEAD.split("\n"), *RIGHT, *WRONG]) + "\n")
    options = ("--strict", "--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache" / "program"))
    environment = {**os.environ, "MYPYPATH": str(ROOT / "pyext")}
    process = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    errors = [line.split(":", 3) for line in process.stdout.splitlines() if line.startswith("program.py:") and " error: " in line]
    assert errors, process.stdout + process.stderr
    return {int(number): message for _, number, _, message in errors}


def _line(call: str) -> int:
    return len(HEAD.split("\n")) + (*RIGHT, *WRONG).index(call) + 1


@pytest.mark.slow
@pytest.mark.xdist_group("typing")
@pytest.mark.parametrize("call", RIGHT)
def test_right_calls_are_accepted(refused: dict[int, str], call: str) -> None:
    assert refused.get(_line(call)) is None


@pytest.mark.slow
@pytest.mark.xdist_group("typing")
@pytest.mark.parametrize("call", WRONG)
def test_wrong_calls_are_refused(refused: dict[int, str], call: str) -> None:
    assert _line(call) in refused
