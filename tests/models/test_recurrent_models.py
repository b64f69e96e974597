"""The lecture's recurrent networks: streaming, truncated BPTT, both namespaces, and tasks that distinguish the networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.models import HiddenMarkovModel, RecurrentNet, SequenceClassifier, per_step_loss, truncated_bptt
from torch_unroll.testing import Target, targets
from torch_unroll.training import adding


def test_the_formulas_of_the_lecture() -> None:
    net = RecurrentNet(3, 4, 2, nonlinearity="relu", output_nonlinearity="sigmoid")
    x, h = torch.randn(5, 2, 3), torch.zeros(2, 4)
    y, last = net(x)
    w, u, b, c = (getattr(net.rnn, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    for t in range(5):
        h = torch.relu(x[t] @ w.T + h @ u.T + b + c)
        torch.testing.assert_close(y[t], torch.sigmoid(h @ net.output.weight.T + net.output.bias))
    torch.testing.assert_close(last[0], h)


@pytest.mark.parametrize("target", targets("rnn"), ids=str)
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "nonlinearity": "relu"}], ids=str)
def test_same_on_either_namespace(options: dict, target: Target) -> None:
    ours, theirs = (SequenceClassifier(3, 5, 4, nn=space, **options).double().to(target.device) for space in (tu.nn, nn))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(6, 2, 3, dtype=torch.float64, device=target.device)
    results = []
    for model in (ours, theirs):
        leaf = x.clone().requires_grad_()
        with tu.use_engine(target.engine):
            scores = model(leaf)
            loss = F.cross_entropy(scores, torch.tensor([1, 3], device=x.device))
            results.append([scores, *torch.autograd.grad(loss, [leaf, *model.parameters()])])
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_streaming_carries_the_state() -> None:
    net = RecurrentNet(3, 4, 2, num_layers=2)
    x = torch.randn(7, 2, 3)
    whole, last = net(x)
    pieces, h = [], None
    for x_t in x:
        y, h = net(x_t[None], h)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces), whole)
    torch.testing.assert_close(h, last)


def test_truncated_bptt_stops_gradients_and_nothing_else() -> None:
    net = RecurrentNet(2, 3, 2).double()
    x, d = torch.randn(6, 2, 2, dtype=torch.float64), torch.randint(2, (6, 2))
    whole = per_step_loss(net(x)[0], d, F.cross_entropy)
    segments = list(truncated_bptt(net, x, d, 2, F.cross_entropy))
    torch.testing.assert_close(sum(segments), whole)
    assert len(segments) == 3
    full = torch.autograd.grad(whole, list(net.parameters()))
    one = torch.autograd.grad(next(truncated_bptt(net, x, d, 6, F.cross_entropy)), list(net.parameters()))
    short = torch.autograd.grad(sum(truncated_bptt(net, x, d, 2, F.cross_entropy)), list(net.parameters()))
    for a, b in zip(full, one, strict=True):
        torch.testing.assert_close(a, b)
    assert any(not torch.allclose(a, b) for a, b in zip(full, short, strict=True))


def _train(net: nn.Module, batches, rate: float) -> None:
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for loss in batches:
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def test_the_bidirectional_network_sees_later_steps() -> None:
    """The answer at step t is the input at step t + 1, so a single direction can only guess."""

    def loss(net: RecurrentNet) -> Tensor:
        x = torch.randint(2, (11, 32))
        y, _ = net(F.one_hot(x, 2).float())
        return F.cross_entropy(y[:-1].flatten(0, 1), x[1:].flatten())

    accuracy = {}
    for bidirectional in (False, True):
        torch.manual_seed(0)
        net = RecurrentNet(2, 16, 2, bidirectional=bidirectional)
        _train(net, (loss(net) for _ in range(150)), 0.02)
        x = torch.randint(2, (21, 200))
        accuracy[bidirectional] = float((net(F.one_hot(x, 2).float())[0][:-1].argmax(2) == x[1:]).float().mean())
    assert accuracy[True] > 0.99
    assert accuracy[False] < 0.6


class TestHiddenMarkovModel:
    """The exact filter, and a recurrent network that learns it."""

    model = HiddenMarkovModel(
        initial=torch.tensor([0.5, 0.3, 0.2]),
        transition=torch.tensor([[0.9, 0.08, 0.02], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8]]),
        emission=torch.tensor([[0.8, 0.1, 0.05, 0.05], [0.05, 0.8, 0.1, 0.05], [0.1, 0.1, 0.1, 0.7]]),
    )

    def test_the_forward_algorithm_sums_over_all_paths(self) -> None:
        x = self.model.sample(4, 5, torch.Generator().manual_seed(1))
        joint = torch.zeros(5)
        for path in torch.cartesian_prod(*[torch.arange(3)] * 4):
            probability = self.model.initial[path[0]] * self.model.emission[path[0], x[0]]
            for t in range(1, 4):
                probability = probability * self.model.transition[path[t - 1], path[t]] * self.model.emission[path[t], x[t]]
            joint += probability
        predicted = self.model.predict(x).gather(2, x[..., None])[..., 0].prod(0)
        torch.testing.assert_close(predicted, joint)

    def test_a_recurrent_net_filters_almost_as_well(self) -> None:
        net = RecurrentNet(5, 32, 4)

        def log_loss(x: Tensor) -> Tensor:
            before = torch.cat([torch.full_like(x[:1], 4), x[:-1]])  # a fifth symbol marks the start
            return F.cross_entropy(net(F.one_hot(before, 5).float())[0].flatten(0, 1), x.flatten())

        generator = torch.Generator().manual_seed(2)
        _train(net, (log_loss(self.model.sample(40, 64, generator)) for _ in range(400)), 0.01)
        held_out = self.model.sample(40, 2000, generator)
        with torch.no_grad():
            learned, exact = float(log_loss(held_out)), float(self.model.log_loss(held_out))
        assert learned < 1.02 * exact


def test_the_adding_problem_at_a_hundred_steps() -> None:
    *_, (length, _, net) = adding.train()
    x, d = adding.draw(length, 1000)
    with torch.no_grad():
        error = F.mse_loss(net(x)[0][-1, :, 0], d)
    assert length == 100
    assert error < 0.01
