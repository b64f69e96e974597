"""Architecture search: its strategies, a study that is continued from a file, DARTS on the package's kernels, and the neural
tangent kernel."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import torch_unroll as tu
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.search import command, darts, ntk, study
from torch_unroll.search.space import CHOICES, Candidate, build, train
from torch_unroll.testing import Target, targets
from torch_unroll.training.digits import Digits

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="architecture search needs Optuna: pip install optuna")


@pytest.mark.parametrize("pooling", CHOICES["pooling"])
@pytest.mark.parametrize("depth", CHOICES["depth"])
def test_every_corner_of_the_space_is_a_network(depth: int, pooling: str) -> None:
    for normalisation in CHOICES["normalisation"]:
        network = build(Candidate(depth, 8, 5, pooling, normalisation))
        assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_good_candidate_learns(digits: Digits) -> None:
    assert max(train(Candidate(depth=2, width=16, rate=0.02), digits, 8)) > 0.95


@needs_optuna
@pytest.mark.parametrize("strategy", study.STRATEGIES)
def test_a_study_is_continued_from_its_store(strategy: str, tmp_path: Path, digits: Digits) -> None:
    few = Digits(digits.images[:96], digits.digits[:96], digits.held_out_images, digits.held_out_digits)
    first = study.open_study(strategy, tmp_path / "store.log", epochs=2)
    study.run(first, strategy, few, trials=2, epochs=2)
    seen = []
    again = study.open_study(strategy, tmp_path / "store.log", epochs=2)
    assert len(again.trials) == 2
    study.run(again, strategy, few, trials=4, epochs=2, report=lambda: seen.append(1))
    assert len(seen) == 2
    assert len({tuple(trial.params.items()) for trial in again.trials}) == 4
    assert "accuracy" in study.table(again)


@needs_optuna
def test_a_grid_ends_when_it_is_exhausted(monkeypatch: pytest.MonkeyPatch, digits: Digits) -> None:
    small = {name: choices[:1] for name, choices in CHOICES.items()} | {"width": (4, 8)}
    monkeypatch.setattr(study, "CHOICES", small)
    few = Digits(digits.images[:64], digits.digits[:64], digits.held_out_images, digits.held_out_digits)
    trials = study.open_study("grid", None, epochs=1)
    study.run(trials, "grid", few, trials=50, epochs=1)
    assert sorted(trial.params["width"] for trial in trials.trials) == [4, 8]


def test_an_unknown_strategy() -> None:
    with pytest.raises(ValueError, match="strategy: expected one of grid, random, hyperband, got 'luck'"):
        study.open_study("luck", None, epochs=1)


class TestDarts:
    """The mixed cell, its gradients on the package's kernels, and the discrete cell."""

    @pytest.mark.parametrize("target", targets("conv2d"), ids=str)
    def test_the_mixed_op_runs_on_these_kernels(self, target: Target) -> None:
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64, device=target.device)
        cell = darts.Cell(4, nodes=2).double().to(target.device)
        results = {}
        for engine in ("torch", target.engine):
            with tu.use_engine(engine), recording() as recorded:
                results[engine] = torch.autograd.grad(cell(x).sin().sum(), [cell.alpha, *cell.edges.parameters()])
        for ours, reference in zip(results[target.engine], results["torch"], strict=True):
            torch.testing.assert_close(ours, reference)
        if target.engine == "cuda":
            names = " ".join(plan.kernel.name for _, plan in recorded.launches)
            assert "conv2d_wgrad" in names
            assert "max_pool2d_backward" in names

    def test_search_prefers_useful_operations_and_derives_a_network(self, digits: Digits) -> None:
        losses = [(loss, cell) for loss, cell in darts.search(digits, epochs=8)]
        genotype = losses[-1][1].genotype()
        assert losses[-1][0] < 0.7 * losses[0][0]
        assert [len(node) for node in genotype] == [1, 2, 2]
        discrete = darts.network(darts.DiscreteCell(8, genotype), 8)
        assert discrete(torch.rand(2, 1, 8, 8)).shape == (2, 10)

    def test_a_discrete_cell_is_the_mixed_one_at_its_limit(self) -> None:
        torch.manual_seed(0)
        mixed = darts.Cell(4, nodes=1)
        with torch.no_grad():
            mixed.alpha.copy_(torch.tensor([[0.0, 0.0, 200.0, 0.0]]))
        discrete = darts.DiscreteCell(4, mixed.genotype())
        assert mixed.genotype() == (((0, "conv_3x3"),),)
        discrete.operations[0].load_state_dict(mixed.edges[0].operations[2].state_dict())
        x = torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(mixed(x), discrete(x))


class TestNeuralTangentKernel:
    """The neural tangent kernel is computed by torch.func's transforms of the package's ops."""

    @pytest.mark.parametrize("target", targets("conv2d"), ids=str)
    def test_it_is_the_gram_matrix_of_the_gradients(self, target: Target) -> None:
        network = build(Candidate(depth=1, width=4)).double().eval().to(target.device)
        x = torch.rand(3, 1, 8, 8, dtype=torch.float64, device=target.device)
        with tu.use_engine(target.engine):
            kernel = ntk.neural_tangent_kernel(network, x)
        rows = []
        for one in x:
            outputs = network(one[None])[0]
            rows.append(
                [
                    torch.cat([g.flatten() for g in torch.autograd.grad(o, list(network.parameters()), retain_graph=True)])
                    for o in outputs
                ]
            )
        jacobian = torch.stack([torch.stack(row) for row in rows])
        torch.testing.assert_close(kernel, torch.einsum("nop,mop->nm", jacobian, jacobian) / 10)

    def test_equal_inputs_make_it_singular(self) -> None:
        network = build(Candidate(depth=1, width=4)).double()
        same = torch.rand(1, 1, 8, 8, dtype=torch.float64).expand(3, -1, -1, -1)
        assert ntk.condition_number(network, same) > 1e10
        assert 1 <= ntk.condition_number(network, torch.rand(3, 1, 8, 8, dtype=torch.float64)) < 1e6


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("strategy", [pytest.param("random", marks=needs_optuna), "darts", "ntk"])
def test_the_command(strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.png"
    arguments = [
        "--strategy",
        strategy,
        "--trials",
        "2",
        "--epochs",
        "1",
        "--store",
        str(tmp_path / "store.log"),
        "--plot",
        str(plot),
    ]
    assert command.main(arguments) == 0
    assert plot.stat().st_size > 3000
    assert capsys.readouterr().out
