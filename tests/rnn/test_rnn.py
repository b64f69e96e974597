"""Recurrence on every engine against torch's own: values, gradients of every order, layouts, lengths, dropout, determinism."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torch_unroll as tu
from torch_unroll.engines.interface import DTYPES
from torch_unroll.testing import Target, assert_as_accurate, assert_exact, targets
from torch_unroll.testing.rnn import CASES, Case

TARGETS = targets("rnn")
ALL = ("tanh", "relu", "sigmoid", "identity")


def _with_gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Returns output, h_n and the gradients of the inputs, for a fixed, uneven weighting of the outputs."""
    weightings = [
        torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64, device=tensor.device).view(tensor.shape).to(tensor.dtype)
        for tensor in outputs
    ]
    return [*(tensor.detach() for tensor in outputs), *torch.autograd.grad(outputs, inputs, weightings)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_values_and_gradients(target: Target, case: Case, dtype: torch.dtype) -> None:
    inputs = case.tensors(target.device, dtype)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours = _with_gradients(case.run(*inputs, engine=target.engine), inputs)
    torchs = _with_gradients(case.torchs(*inputs), inputs)
    exact = _with_gradients(case.torchs(*exact_inputs), exact_inputs)
    for number, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert_as_accurate(mine, theirs, truth, f"{case}: result {number}")


@pytest.mark.parametrize("nonlinearity", ALL)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_derivatives(target: Target, nonlinearity: str) -> None:
    small = Case("", T=2, N=2, inputs=2, H=2, nonlinearity=nonlinearity, bidirectional=True)
    for case in (small, replace(small, lengths=(2, 1)), replace(small, batch_sizes=(2, 1))):
        inputs = case.tensors(target.device)

        def call(*tensors: Tensor, case: Case = case) -> tuple[Tensor, Tensor]:
            return case.run(*tensors, engine=target.engine)

        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=target.engine != "torch")
        assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("nonlinearity", ALL)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_derivatives_of_a_cell(target: Target, nonlinearity: str) -> None:
    shapes = [(2, 3), (2, 4), (4, 3), (4, 4), (4,), (4,)]
    inputs = [(torch.rand(shape, dtype=torch.float64) - 0.5).to(target.device).requires_grad_() for shape in shapes]

    def call(*tensors: Tensor) -> Tensor:
        return tu.rnn_cell(*tensors, nonlinearity=nonlinearity, engine=target.engine)

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_third_derivative(target: Target) -> None:
    case = Case("", T=2, N=1, inputs=2, H=2)
    inputs = case.tensors(target.device)

    def second(*tensors: Tensor) -> tuple[Tensor, ...]:
        loss = sum(tensor.sin().sum() for tensor in case.run(*tensors, engine=target.engine))
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        return torch.autograd.grad(sum(tensor.sin().sum() for tensor in first), tensors, create_graph=True)

    assert torch.autograd.gradcheck(second, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_cell_values_and_gradients(target: Target, nonlinearity: str, dtype: torch.dtype) -> None:
    torchs_cell = {"tanh": torch.rnn_tanh_cell, "relu": torch.rnn_relu_cell}[nonlinearity]
    for N, width, H, biases in ((3, 5, 7, 2), (1, 8, 8, 0), (2, 3, 4, 1)):
        shapes = [(N, width), (N, H), (H, width), (H, H), *[(H,)] * biases]
        inputs = [torch.randn(shape).div(2).to(target.device, dtype).requires_grad_() for shape in shapes]
        exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
        none = [None] * (2 - biases)
        results = [
            [h.detach(), *torch.autograd.grad(h, tensors, torch.linspace(-1, 2, h.numel()).view(h.shape).to(h))]
            for h, tensors in (
                (tu.rnn_cell(*inputs, *none, nonlinearity=nonlinearity, engine=target.engine), inputs),
                (torchs_cell(*inputs, *none), inputs),
                (torchs_cell(*exact_inputs, *none), exact_inputs),
            )
        ]
        for number, (ours, torchs, exact) in enumerate(zip(*results, strict=True)):
            assert_as_accurate(ours, torchs, exact, f"N {N}, {biases} biases: result {number}")


@pytest.mark.parametrize("nonlinearity", ALL)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_steps_one_at_a_time_give_the_same(target: Target, nonlinearity: str) -> None:
    case = Case("", T=6, N=3, inputs=5, H=7, nonlinearity=nonlinearity)
    x, h, *weights = case.tensors(target.device, torch.float32, grad=False)
    output, h_n = case.run(x, h, *weights, engine=target.engine)
    state = h[0]
    for t in range(case.T):
        state = tu.rnn_cell(x[t], state, *weights, nonlinearity=nonlinearity, engine=target.engine)
        torch.testing.assert_close(output[t], state)
    torch.testing.assert_close(h_n[0], state)
    first, carried = case.run(x[:2], h, *weights, engine=target.engine)  # in two parts, with h carried from one to the next
    second, last = case.run(x[2:], carried, *weights, engine=target.engine)
    torch.testing.assert_close(torch.cat((first, second)), output)
    torch.testing.assert_close(last, h_n)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_backward_is_the_lectures_equations(target: Target) -> None:
    """Compares with δ_t = (1 − h_t²) (∂L/∂h_t + W_hhᵀ δ_{t+1});  ∂L/∂W_hh = Σ δ_t h_{t−1}ᵀ;  ∂L/∂W_ih = Σ δ_t x_tᵀ.

    δ_t is the gradient of the argument of tanh at step t, and ∂L/∂h_t the incoming gradient of the output at step t.
    """
    case = Case("", T=4, N=1)
    x, h0, w_ih, w_hh, b_ih, b_hh = inputs = case.tensors(target.device)
    output, _ = case.run(*inputs, engine=target.engine)
    gradient = torch.randn_like(output)
    dx, dh0, dw_ih, dw_hh, db_ih, db_hh = torch.autograd.grad(output, inputs, gradient)
    with torch.no_grad():
        states = [h0[0, 0]]
        for t in range(case.T):
            states.append(torch.tanh(w_ih @ x[t, 0] + b_ih + w_hh @ states[-1] + b_hh))
        deltas = [torch.zeros_like(states[0])]
        for t in reversed(range(case.T)):
            deltas.insert(0, (1 - states[t + 1] ** 2) * (gradient[t, 0] + w_hh.T @ deltas[0]))
        deltas.pop()
        torch.testing.assert_close(dw_hh, sum(torch.outer(delta, h) for delta, h in zip(deltas, states[:-1], strict=True)))
        torch.testing.assert_close(dw_ih, sum(torch.outer(delta, row) for delta, row in zip(deltas, x[:, 0], strict=True)))
        torch.testing.assert_close(db_ih, sum(deltas))
        torch.testing.assert_close(db_hh, db_ih)
        torch.testing.assert_close(dh0[0, 0], w_hh.T @ deltas[0])
        torch.testing.assert_close(dx[:, 0], torch.stack(deltas) @ w_ih)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", ALL)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_lengths_are_packed_sequences(target: Target, nonlinearity: str, bidirectional: bool) -> None:
    lengths = (4, 3, 3, 1)
    case = Case("", T=4, N=4, nonlinearity=nonlinearity, bidirectional=bidirectional, num_layers=2, lengths=lengths)
    inputs = case.tensors(target.device)
    padded = _with_gradients(case.run(*inputs, engine=target.engine), inputs)
    packed = pack_padded_sequence(inputs[0], torch.tensor(lengths))
    options = {"nonlinearity": nonlinearity, "num_layers": 2, "bidirectional": bidirectional}
    output, h_n = tu.rnn(packed.data, inputs[1], inputs[2:], batch_sizes=packed.batch_sizes, **options, engine=target.engine)
    unpacked, _ = pad_packed_sequence(packed._replace(data=output))
    for mine, theirs in zip(padded, _with_gradients((unpacked, h_n), inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_any_strides(target: Target) -> None:
    case = Case("", T=3, N=4, inputs=5, H=6, bidirectional=True)
    plain = case.tensors(target.device)
    expected = _with_gradients(case.run(*plain, engine=target.engine), plain)
    wide = [torch.stack((tensor.detach(), tensor.detach()), -1) for tensor in plain]
    strided = [tensor[..., 0].requires_grad_() for tensor in wide]
    for ours, theirs in zip(_with_gradients(case.run(*strided, engine=target.engine), strided), expected, strict=True):
        assert_exact(ours, theirs)
    transposed = [tensor.detach().mT.contiguous().mT.requires_grad_() if tensor.dim() > 1 else tensor for tensor in plain]
    assert not transposed[1].is_contiguous()
    for ours, theirs in zip(_with_gradients(case.run(*transposed, engine=target.engine), transposed), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    row = torch.randn(1, 1, 5, dtype=torch.float64, device=target.device)
    both = [case.run(x, *plain[1:], engine=target.engine)[0] for x in (row.expand(3, 4, 5), row.repeat(3, 4, 1))]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_batch_first_is_laid_out_as_it_came(target: Target) -> None:
    case = Case("", T=3, N=4, bidirectional=True, batch_first=True, num_layers=2)
    x, *rest = case.tensors(target.device)
    output, _ = case.run(x, *rest, engine=target.engine)
    assert output.is_contiguous()
    assert torch.autograd.grad(output.sum(), x)[0].is_contiguous()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_unbatched_and_without_h0(target: Target) -> None:
    case = Case("", N=1, num_layers=2, bidirectional=True)
    x, h0, *weights = case.tensors(target.device, grad=False)
    options = {"num_layers": 2, "bidirectional": True, "engine": target.engine}
    batched = tu.rnn(x, h0, weights, **options)
    for batch_first in (False, True):
        output, h_n = tu.rnn(x.squeeze(1), h0.squeeze(1), weights, **options, batch_first=batch_first)
        torch.testing.assert_close((output, h_n), (batched[0].squeeze(1), batched[1].squeeze(1)))
    torch.testing.assert_close(tu.rnn(x, None, weights, **options), tu.rnn(x, torch.zeros_like(h0), weights, **options))
    cell = weights[:4]
    torch.testing.assert_close(
        tu.rnn_cell(x[0, 0], h0[0, 0], *cell, engine=target.engine), tu.rnn_cell(x[0], h0[0], *cell, engine=target.engine)[0]
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_same_bits_twice(target: Target, case: Case) -> None:
    inputs = case.tensors(target.device, torch.float32)
    runs = [_with_gradients(case.run(*inputs, engine=target.engine), inputs) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert_exact(first, second)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_an_empty_batch(target: Target) -> None:
    for case in (Case("", N=0, num_layers=2), Case("", N=0, bidirectional=True, lengths=())):
        inputs = case.tensors(target.device)
        output, h_n = case.run(*inputs, engine=target.engine)
        assert output.shape == (3, 0, 4 * case.states // case.num_layers)
        assert h_n.shape == (2, 0, 4)
        assert all(not gradient.any() for gradient in torch.autograd.grad(output.sum() + h_n.sum(), inputs))
    weights = case.tensors(target.device)[2:6]
    empty = (
        torch.randn(0, 3, dtype=torch.float64, device=target.device),
        torch.randn(0, 4, dtype=torch.float64, device=target.device),
    )
    assert tu.rnn_cell(*empty, *weights, engine=target.engine).shape == (0, 4)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_lies_beyond_a_length_is_neither_read_nor_moved(target: Target) -> None:
    case = Case("", T=4, N=3, lengths=(2, 0, 4), bidirectional=True)
    x, h0, *weights = inputs = case.tensors(target.device)
    output, h_n = case.run(*inputs, engine=target.engine)
    assert not output[2:, 0].any()
    assert not output[:, 1].any()
    assert_exact(h_n[:, 1].detach(), h0[:, 1].detach())
    for gradient in torch.autograd.grad(output.sum(), [x, h0]):
        assert not gradient[:, 1].any()
    other = x.detach().clone()
    other[2:, 0], other[:, 1] = 7.0, -7.0
    for ours, theirs in zip(case.run(other, h0, *weights, engine=target.engine), (output, h_n), strict=True):
        assert_exact(ours, theirs)
    with_int32 = tu.rnn(
        x, h0, weights, bidirectional=True, engine=target.engine, lengths=torch.tensor((2, 0, 4), dtype=torch.int32)
    )
    for ours, theirs in zip(with_int32, (output, h_n), strict=True):
        assert_exact(ours, theirs)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_dropout(target: Target) -> None:
    case = Case("", T=20, N=8, H=8, num_layers=2, options={"dropout": 0.5, "training": True})
    inputs = case.tensors(target.device)
    torch.manual_seed(3)
    first = case.run(*inputs, engine=target.engine)
    torch.manual_seed(3)
    second = case.run(*inputs, engine=target.engine)
    third = case.run(*inputs, engine=target.engine)
    assert_exact(first[0].detach(), second[0].detach())
    assert not torch.equal(first[0], third[0])
    undisturbed = replace(case, options={}).run(*inputs, engine=target.engine)
    # No dropout is applied to the first layer's own state. With dropout, its two biases are added to each other first.
    torch.testing.assert_close(first[1][0], undisturbed[1][0])
    assert_exact(replace(case, options={"dropout": 0.5}).run(*inputs, engine=target.engine)[0].detach(), undisturbed[0].detach())
    everything = replace(case, options={"dropout": 1.0, "training": True})
    x, h0, *weights = inputs
    output, _ = everything.run(*inputs, engine=target.engine)
    upper, _ = Case("", inputs=8).run(output.new_zeros(20, 8, 8), h0[1:], *weights[4:], engine=target.engine)
    torch.testing.assert_close(output, upper)
    assert not torch.autograd.grad(output.sum(), x)[0].any()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_recomputing_keeps_less_and_draws_the_same_masks(target: Target) -> None:
    case = Case("", T=36, N=4, H=8, num_layers=2, options={"dropout": 0.5, "training": True})
    inputs = case.tensors(target.device)
    results, kept = [], []
    for segments in (None, 6):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        options = {**case.options, "recompute_segments": segments, "dropout": 0.0}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = replace(case, options=options).run(*inputs, engine=target.engine)
        kept.append(sum(saved.values()))
        results.append(_with_gradients(outputs, inputs))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)
    assert kept[1] < kept[0] / 2
    with_masks = replace(case, options={**case.options, "recompute_segments": 6})
    step = 1e-6
    values = []
    for sign in (1, -1):
        moved = [*(tensor.detach() for tensor in inputs[:-1]), inputs[-1].detach() + sign * step]
        torch.manual_seed(2)
        values.append(with_masks.run(*moved, engine=target.engine)[0].sum())
    torch.manual_seed(2)
    again = with_masks.run(*inputs, engine=target.engine)[0].sum()
    (gradient,) = torch.autograd.grad(again, inputs[-1])
    torch.testing.assert_close(gradient.sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_nan_travels_as_nan(target: Target) -> None:
    case = Case("", T=4, N=3)
    x, h0, *weights = case.tensors(target.device, torch.float32, grad=False)
    x[1, 0, 0] = float("nan")
    h0[0, 2, 1] = float("nan")
    output, _ = case.run(x, h0, *weights, engine=target.engine)
    nan = output.isnan()
    assert nan[1:, 0].all()
    assert nan[:, 2].all()
    assert not nan[0, 0].any()
    assert not nan[:, 1].any()


@pytest.mark.parametrize("target", [target for target in TARGETS if target.engine != "numba"], ids=str)
def test_more_steps_than_a_grid_dimension(target: Target) -> None:
    if target.engine == "cuda" and target.device.type == "cpu":
        pytest.skip("65,537 steps take the emulator minutes")
    case = Case("", T=65537, N=1, inputs=1, H=2)
    inputs = case.tensors(target.device, torch.float32, grad=False)
    torch.testing.assert_close(case.run(*inputs, engine=target.engine), case.torchs(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_autocast(target: Target) -> None:
    case = Case("", num_layers=2, bidirectional=True, lengths=(2, 0))
    inputs = case.tensors(target.device, torch.float32)
    with torch.autocast(target.device.type, torch.bfloat16):
        output, h_n = case.run(*inputs, engine=target.engine)
        reference = replace(case, lengths=None).torchs(*inputs)
        cell = tu.rnn_cell(inputs[0][0], inputs[1][0], *inputs[2:6], engine=target.engine)
    assert output.dtype == h_n.dtype == cell.dtype == reference[0].dtype == reference[1].dtype == torch.bfloat16
    exact = case.torchs(*(tensor.detach().bfloat16().double() for tensor in inputs))
    torch.testing.assert_close(output.double(), exact[0], rtol=0, atol=0.02)
    for tensor, gradient in zip(inputs, torch.autograd.grad(output.float().sum() + h_n.float().sum(), inputs), strict=True):
        assert gradient.dtype == tensor.dtype


def test_what_no_engine_claims_is_torchs() -> None:
    for case in CASES:
        inputs = case.tensors(torch.device("cpu"))
        torch.testing.assert_close(case.run(*inputs), case.torchs(*inputs))
    unbatched = Case("", N=1)
    x, h0, *weights = unbatched.tensors(torch.device("cpu"), grad=False)
    expected = unbatched.torchs(x, torch.zeros_like(h0), *weights)
    torch.testing.assert_close(tu.rnn(x.squeeze(1), None, weights), (expected[0].squeeze(1), expected[1].squeeze(1)))
    torch.testing.assert_close(tu.rnn_cell(x[0, 0], h0[0, 0], *weights), torch.rnn_tanh_cell(x[0], h0[0], *weights).squeeze(0))
    torch.testing.assert_close(tu.rnn_cell(x[0], h0[0], *weights, nonlinearity="identity"), _linear_cell(x[0], h0[0], *weights))


def _linear_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return x @ w_ih.T + b_ih + h @ w_hh.T + b_hh
