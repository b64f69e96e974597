"""Recurrence follows torch in signatures, messages, modes, dropout and packed rows; lengths may have any integer dtype."""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import skip_init
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torch_unroll as tu
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("rnn")
ENGINES = [None, *(target.engine for target in TARGETS if target.device.type == "cpu")]
T, N, I, H = 5, 2, 3, 4  # noqa: E741 (the letters of recurrence)
Call = Callable[[], Any]


def _raised(call: Call) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 (its type is the answer)
        call()
    return raised.value


def _packed(data: Tensor, *batch_sizes: int) -> PackedSequence:
    return PackedSequence(data, torch.tensor(batch_sizes))


# what is wrong -> the inputs of a module, and a pattern of torch's message
RNN_ERRORS: dict[str, tuple[tuple[Any, ...], str]] = {
    "a sequence of no steps": ((torch.ones(0, N, I),), "Expected sequence length to be larger than 0 in RNN"),
    "an unbatched one of none": ((torch.ones(0, I),), "Expected sequence length to be larger than 0 in RNN"),
    "input elsewhere": (
        (torch.ones(T, N, I, device="meta"),),
        "Input and parameter tensors are not at the same device, found input tensor at meta and parameter tensor at cpu",
    ),
    "state elsewhere": (
        (torch.ones(T, N, I), torch.ones(1, N, H, device="meta")),
        "Input and hidden tensors are not at the same device, found input tensor at cpu and hidden tensor at meta",
    ),
    "state of another batch": ((torch.ones(T, N, I), torch.ones(1, 3, H)), r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"),
    "state of another rank": (
        (torch.ones(T, N, I), torch.ones(1, H)),
        "For batched 3-D input, hx should also be 3-D but got 2-D",
    ),
    "batched state": (
        (torch.ones(T, I), torch.ones(1, N, H)),
        "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor",
    ),
    "input of rank 4": ((torch.ones(1, T, N, I),), "RNN: Expected input to be 2D or 3D, got 4D tensor instead"),
    "input too wide": ((torch.ones(T, N, 7),), r"input.size\(-1\) must be equal to input_size. Expected 3, got 7"),
    "packed rank": ((_packed(torch.ones(3, 1, I), 2, 1),), "input must have 2 dimensions, got 3"),
    "packed state": (
        (_packed(torch.ones(3, I), 2, 1), torch.ones(1, 3, H)),
        r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]",
    ),
}
CELL_ERRORS: dict[str, tuple[tuple[Any, ...], str]] = {
    "input too wide": ((torch.ones(N, 7),), "input has inconsistent input_size: got 7 expected 3"),
    "state too wide": ((torch.ones(N, I), torch.ones(N, 7)), "hidden0 has inconsistent hidden_size: got 7, expected 4"),
    "state of another batch": ((torch.ones(N, I), torch.ones(5, H)), "Input batch size 2 doesn't match hidden0 batch size 5"),
    "state without a batch": ((torch.ones(N, I), torch.ones(H)), "Input batch size 2 doesn't match hidden0 batch size 4"),
    "input without a batch": ((torch.ones(I), torch.ones(1, H)), "hidden0 has inconsistent hidden_size: got 1, expected 4"),
    "input of rank 3": ((torch.ones(1, N, I),), "RNNCell: Expected input to be 1D or 2D, got 3D instead"),
    "state of rank 3": ((torch.ones(N, I), torch.ones(1, N, H)), "RNNCell: Expected hidden to be 1D or 2D, got 3D instead"),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_modules_say_what_torchs_say(engine: str | None) -> None:
    for name, table in (("RNN", RNN_ERRORS), ("RNNCell", CELL_ERRORS)):
        for mistake, (inputs, message) in table.items():
            torchs = getattr(torch.nn, name)(I, H)
            replaced = copy.deepcopy(torchs)
            tu.replace(replaced)
            theirs = _raised(lambda torchs=torchs, inputs=inputs: torchs(*inputs))
            assert re.search(message, str(theirs)), f"{name}, {mistake}: {theirs}"
            with tu.use_engine(engine or "auto"):
                for module in (replaced, getattr(tu.nn, name)(I, H)):
                    ours = _raised(lambda module=module, inputs=inputs: module(*inputs))
                    assert type(ours) is type(theirs), f"{name}, {mistake}: {ours!r}"
                    assert re.search(message, str(ours)), f"{name}, {mistake}: {ours}"


@pytest.mark.parametrize("engine", ENGINES)
def test_cells_say_what_torchs_say_of_weights(engine: str | None) -> None:
    x, h = torch.ones(N, I), torch.ones(N, H)
    for w_ih, w_hh in (((5, I), (H, H)), ((H, I), (5, H)), ((H, I), (H, 5)), ((5, I), (6, H))):
        weights = torch.ones(w_ih), torch.ones(w_hh)
        theirs = _raised(lambda weights=weights: torch.rnn_tanh_cell(x, h, *weights))
        ours = _raised(lambda weights=weights: tu.rnn_cell(x, h, *weights, engine=engine))
        assert type(ours) is type(theirs)
        assert str(theirs).splitlines()[0] in str(ours)


def test_signatures() -> None:
    """Signatures are those of torch's documentation, plus `engine`."""
    documented = inspect.signature(torch.nn.RNNCell).parameters
    assert list(inspect.signature(tu.nn.RNNCell).parameters) == [*documented, "engine"]
    names = "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional device dtype engine".split()
    parameters = inspect.signature(tu.nn.RNN).parameters
    assert list(parameters)[: len(names)] == names
    assert parameters["engine"].kind is inspect.Parameter.KEYWORD_ONLY
    ours = tu.nn.RNN(I, H, 2, "relu", False, True, 0.5, True, "cpu", torch.float64)
    torchs = torch.nn.RNN(I, H, 2, "relu", False, True, 0.5, True, device="cpu", dtype=torch.float64)
    assert repr(ours) == repr(torchs)
    assert ours.mode == torchs.mode
    assert {key: (value.shape, value.dtype) for key, value in ours.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in torchs.state_dict().items()
    }
    for options in ({}, {"nonlinearity": "relu"}, {"dtype": torch.float64}, {"bias": False, "engine": "torch"}):
        for name in ("RNN", "RNNCell"):
            module = skip_init(getattr(tu.nn, name), I, H, **options)
            assert next(module.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    "options", [{"proj_size": 2}, {"proj_size": 0}, {"hiden_size": 2}, {"bias": 0}, {"dropout": True}], ids=str
)
def test_odd_constructions_are_refused_as_by_torch(options: dict[str, Any]) -> None:
    theirs, ours = (_raised(lambda nn=nn: nn.RNN(I, H, **options)) for nn in (torch.nn, tu.nn))
    assert type(ours) is type(theirs)
    assert str(ours).replace("RNN.", "RNNBase.") == str(theirs)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["RNN_RELU", "RNN_TANH"])
def test_a_replaced_module_computes_by_its_mode(mode: str, engine: str | None) -> None:
    """torch's modules do not read `nonlinearity` after construction, and old pickles do not have it."""
    x = torch.randn(T, N, I)
    for nonlinearity in ("tanh", "relu", None, "gelu"):
        torchs = torch.nn.RNN(I, H)
        torchs.mode = mode
        if nonlinearity is None:
            del torchs.nonlinearity
        else:
            torchs.nonlinearity = nonlinearity
        file = io.BytesIO()
        torch.save(torchs, file)
        file.seek(0)
        module = torch.load(file, weights_only=False)
        tu.replace(module)
        with tu.use_engine(engine or "auto"):
            torch.testing.assert_close(module(x), torchs(x))
            assert (module(x)[0] < 0).any() == (mode == "RNN_TANH")
    module.mode = "LSTM"
    with pytest.raises(AssertionError, match="mode must be one of RNN_TANH, RNN_RELU"):
        module(x)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", ["steps_first", "batch_first", "packed", "unbatched", "transposed"])
@pytest.mark.parametrize("target", [target for target in TARGETS if target.device.type == "cpu"], ids=str)
def test_dropout_draws_torchs_masks(target: Target, layout: str, bidirectional: bool) -> None:
    """Runs on the CPU only, since cuDNN draws other masks."""
    options = {"num_layers": 3, "dropout": 0.4, "bidirectional": bidirectional, "batch_first": layout == "batch_first"}
    torchs = torch.nn.RNN(I, H, **options)
    ours = tu.nn.RNN(I, H, **options, engine=target.engine)
    ours.load_state_dict(torchs.state_dict())
    x: Any = torch.randn(T, I) if layout == "unbatched" else torch.randn(T, N, I)
    if layout == "packed":
        x = pack_padded_sequence(x, [T, 2])
    if layout == "transposed":
        x = torch.randn(N, T, I).transpose(0, 1)
    results = []
    for module in (ours, torchs):
        torch.manual_seed(3)
        output, h_n = module(x)
        data = output.data if layout == "packed" else output
        results.append((data, h_n, *torch.autograd.grad(data.sum(), module.parameters())))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_leaves_its_layout_alone() -> None:
    x = torch.randn(N, T, I)
    module = tu.nn.RNN(I, H, 2, dropout=0.5, batch_first=True, engine="torch")
    assert module(x)[0].stride() == module.eval()(x)[0].stride()


INTEGERS = "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_lengths_of_every_integer_dtype(target: Target, dtype: str) -> None:
    """For 8-bit dtypes, the sequence has more steps than the dtype can hold."""
    steps = 300 if "8" in dtype else T
    kind = getattr(torch, dtype)
    counts = torch.tensor([steps, 0, 2, 100] if steps < 128 else [100, 0, 2, 127], device=target.device)
    rnn = tu.nn.RNN(2, 2, 2, bidirectional=True, engine=target.engine).to(target.device)
    x = torch.randn(steps, 4, 2, device=target.device, requires_grad=True)
    results = []
    for lengths in (counts.to(kind), counts):
        output, h_n = rnn(x, None, lengths)
        pooled = tu.max_over_time(output, lengths, engine=target.engine)
        (dx,) = torch.autograd.grad(output.sum() + h_n.sum() + pooled.where(pooled > -torch.inf, 0).sum(), x)
        results.append((output.detach(), h_n.detach(), pooled.detach(), dx))
    for mine, expected in zip(*results, strict=True):
        assert_exact(mine, expected)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_lengths_beyond_int64_are_all_of_the_steps(target: Target) -> None:
    lengths = torch.tensor([2**63, 2**64 - 1, 2**63 - 1, 1], dtype=torch.uint64, device=target.device)
    x = torch.randn(T, 4, 2, device=target.device)
    expected = torch.tensor([T, T, T, 1], device=target.device)
    rnn = tu.nn.RNN(2, 3, engine=target.engine).to(target.device)
    assert_exact(rnn(x, None, lengths)[0], rnn(x, None, expected)[0])
    assert_exact(tu.max_over_time(x, lengths, engine=target.engine), tu.max_over_time(x, expected, engine=target.engine))


@pytest.mark.parametrize("lengths", [[True, False], [1.0, 2.0], [1j, 2j]], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_lengths_that_count_nothing_are_refused(engine: str | None, lengths: list[Any]) -> None:
    x, counts = torch.ones(T, N, I), torch.tensor(lengths)
    weights = [torch.ones(H, I), torch.ones(H, H)]
    for call in (
        lambda: tu.rnn(x, None, weights, lengths=counts, engine=engine),
        lambda: tu.max_over_time(x, counts, engine=engine),
    ):
        with pytest.raises(RuntimeError, match=f"lengths: expected an integer dtype, got {counts.dtype}"):
            call()


@pytest.mark.parametrize(
    ("rows", "batch_sizes"), [(7, (2, 1)), (4, (3,)), (9, (3, 2, 2)), (0, (0, 0)), (3, (0,)), (0, (0, 0, 0))]
)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_packed_rows_as_torch_reads_them(target: Target, rows: int, batch_sizes: tuple[int, ...]) -> None:
    """Rows that batch_sizes does not count are not read, and a batch may be empty."""
    sizes = torch.tensor(batch_sizes)
    data = torch.randn(rows, I, device=target.device)
    h0 = torch.randn(1, batch_sizes[0], H, device=target.device)
    weights = [torch.randn(shape, device=target.device) for shape in ((H, I), (H, H))]
    results = []
    for ours in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (data, h0, *weights)]
        x, start, *parameters = leaves
        if ours:
            pair = tu.rnn(x, start, parameters, batch_sizes=sizes, engine=target.engine)
        else:
            pair = torch.rnn_tanh(x, sizes, start, parameters, False, 1, 0.0, False, False)
        results.append((*pair, *torch.autograd.grad(pair[0].sum() + pair[1].sum(), leaves)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_packed_rows_too_many_for_two_directions_are_refused(engine: str) -> None:
    weights = [torch.ones(shape) for shape in ((H, I), (H, H))] * 2
    with pytest.raises(RuntimeError, match="batch_sizes: expected a sum of 7, the rows of the input, got 3"):
        tu.rnn(torch.ones(7, I), None, weights, batch_sizes=torch.tensor([2, 1]), bidirectional=True, engine=engine)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 6])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_one_sequence_for_every_state(target: Target, samples: int, bidirectional: bool, layers: int) -> None:
    """torch's operators broadcast an unbatched input over the states of a batch, and so does tu.rnn."""
    D = 2 if bidirectional else 1
    weights: list[Tensor] = []
    for layer in range(layers):
        weights += [torch.randn(shape, device=target.device) for _ in range(D) for shape in ((H, D * H if layer else I), (H, H))]
    x = torch.randn(T, I, device=target.device, requires_grad=True)
    h0 = torch.randn(layers * D, samples, H, device=target.device, requires_grad=True)
    ours = tu.rnn(x, h0, weights, num_layers=layers, bidirectional=bidirectional, engine=target.engine)
    theirs = torch.rnn_tanh(x, h0, weights, False, layers, 0.0, False, bidirectional, False)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(*(torch.autograd.grad(pair[0].sum(), (x, h0)) for pair in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected)
