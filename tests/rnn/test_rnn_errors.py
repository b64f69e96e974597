"""Invalid calls raise the type of exception that torch raises, if it raises one; messages of `rnn` name the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("rnn")
I, H, N, T = 3, 4, 2, 5  # noqa: E741 (the letters of recurrence)


def _t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def _weights(**changed: Any) -> list[Tensor]:
    weights = {"w_ih": _t(H, I), "w_hh": _t(H, H), "b_ih": _t(H), "b_hh": _t(H)}
    return list({**weights, **changed}.values())


X, H0, DOUBLE = (T, N, I), (1, N, H), torch.float64
Call = Callable[[Any], Any]

# what is wrong -> a call of f(input, h0, weights, layers=, dropout=, training=, bidirectional=, batch_sizes=), and the argument
# that the message names
BOTH: dict[str, tuple[Call, str]] = {
    "input too wide": (lambda f: f(_t(T, N, I + 1), _t(*H0), _weights()), "w_ih of layer 0"),
    "input of another dtype": (lambda f: f(_t(*X, dtype=DOUBLE), _t(*H0), _weights()), "h0"),
    "no steps": (lambda f: f(_t(0, N, I), _t(*H0), _weights()), "input"),
    "h0 of another dtype": (lambda f: f(_t(*X), _t(*H0, dtype=DOUBLE), _weights()), "h0"),
    "h0 on another device": (lambda f: f(_t(*X), _t(*H0).to("meta"), _weights()), "h0"),
    "h0 of another batch": (lambda f: f(_t(*X), _t(1, N + 1, H), _weights()), "h0"),
    "h0 too wide": (lambda f: f(_t(*X), _t(1, N, H + 1), _weights()), "h0"),
    "h0 of rank 2": (lambda f: f(_t(*X), _t(N, H), _weights()), "h0"),
    "h0 of too few layers": (lambda f: f(_t(*X), _t(*H0), [*_weights(), *_weights(w_ih=_t(H, H))], layers=2), "h0"),
    "h0 of one direction": (lambda f: f(_t(*X), _t(*H0), [*_weights(), *_weights()], bidirectional=True), "h0"),
    "a weight missing": (lambda f: f(_t(*X), _t(*H0), _weights()[:3]), "weights"),
    "a weight too many": (lambda f: f(_t(*X), _t(*H0), [*_weights(), _t(H)]), "weights"),
    "no weights": (lambda f: f(_t(*X), _t(*H0), []), "weights"),
    "no layers": (lambda f: f(_t(*X), _t(*H0), _weights(), layers=0), "num_layers"),
    "negative layers": (lambda f: f(_t(*X), _t(*H0), _weights(), layers=-1), "num_layers"),
    "w_ih of another dtype": (lambda f: f(_t(*X), _t(*H0), _weights(w_ih=_t(H, I, dtype=DOUBLE))), "w_ih of layer 0"),
    "w_ih too high": (lambda f: f(_t(*X), _t(*H0), _weights(w_ih=_t(H + 1, I))), "w_ih of layer 0"),
    "w_hh not square": (lambda f: f(_t(*X), _t(*H0), _weights(w_hh=_t(H, H + 1))), "w_ih of layer 0"),
    "w_hh of another dtype": (lambda f: f(_t(*X), _t(*H0), _weights(w_hh=_t(H, H, dtype=DOUBLE))), "w_hh of layer 0"),
    "b_ih too long": (lambda f: f(_t(*X), _t(*H0), _weights(b_ih=_t(H + 1))), "b_ih of layer 0"),
    "second layer too wide": (
        lambda f: f(_t(*X), _t(2, N, H), [*_weights(), *_weights(w_ih=_t(H, H + 1))], layers=2),
        "w_ih of layer 1",
    ),
    "dropout above 1": (
        lambda f: f(_t(*X), _t(2, N, H), [*_weights(), *_weights(w_ih=_t(H, H))], layers=2, dropout=1.5, training=True),
        "dropout",
    ),
    "dropout negative": (
        lambda f: f(_t(*X), _t(2, N, H), [*_weights(), *_weights(w_ih=_t(H, H))], layers=2, dropout=-0.5, training=True),
        "dropout",
    ),
    "batch_sizes of rank 3 input": (lambda f: f(_t(*X), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 2, 1])), "input"),
    "batch_sizes beyond the rows": (
        lambda f: f(_t(4, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 2, 1])),
        "batch_sizes",
    ),
    "batch_sizes of another batch": (lambda f: f(_t(4, I), _t(*H0), _weights(), batch_sizes=torch.tensor([3, 1])), "batch_sizes"),
    "batch_sizes negative": (lambda f: f(_t(3, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 2, -1])), "batch_sizes"),
    "batch_sizes floating": (lambda f: f(_t(3, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2.0, 1.0])), "batch_sizes"),
    "batch_sizes int32": (
        lambda f: f(_t(3, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 1], dtype=torch.int32)),
        "batch_sizes",
    ),
    "input not a tensor": (lambda f: f([1.0], _t(*H0), _weights()), "input"),
    "h0 not a tensor": (lambda f: f(_t(*X), 0.0, _weights()), "h0"),
}

# Calls that torch's operator accepts, crashes on (torch 2.13 on empty batch_sizes), or refuses only when a step inside it fails;
# and invalid values of `lengths`, which torch's operator does not have.
ONLY_OURS: dict[str, tuple[Call, str]] = {
    "batch_sizes that grow": (lambda f: f(_t(4, I), _t(1, 1, H), _weights(), batch_sizes=torch.tensor([1, 2, 1])), "batch_sizes"),
    "batch_sizes 0": (lambda f: f(_t(2, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 0])), "batch_sizes"),
    "batch_sizes empty": (
        lambda f: f(_t(0, I), _t(*H0), _weights(), batch_sizes=torch.zeros(0, dtype=torch.int64)),
        "batch_sizes",
    ),
    "input of rank 4": (lambda f: f(_t(1, *X), _t(*H0), _weights()), "input"),
    "integers": (lambda f: f(_t(*X).long(), _t(*H0).long(), [tensor.long() for tensor in _weights()]), "input|torch"),
    "lengths of another batch": (lambda f: f(_t(*X), _t(*H0), _weights(), lengths=torch.tensor([1])), "lengths"),
    "lengths floating": (lambda f: f(_t(*X), _t(*H0), _weights(), lengths=torch.tensor([1.0, 2.0])), "lengths"),
    "lengths bool": (lambda f: f(_t(*X), _t(*H0), _weights(), lengths=torch.tensor([True, False])), "lengths"),
    "lengths complex": (lambda f: f(_t(*X), _t(*H0), _weights(), lengths=torch.tensor([1j, 2j])), "lengths"),
    "lengths elsewhere": (lambda f: f(_t(*X), _t(*H0), _weights(), lengths=torch.tensor([1, 2]).to("meta")), "lengths"),
    "lengths and batch_sizes": (
        lambda f: f(_t(3, I), _t(*H0), _weights(), batch_sizes=torch.tensor([2, 1]), lengths=torch.tensor([2, 1])),
        "lengths",
    ),
}


def _torchs(
    input: Any,
    h0: Any,
    weights: list[Tensor],
    layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_sizes: Tensor | None = None,
) -> Any:
    settings = (weights, True, layers, dropout, training, bidirectional)
    if batch_sizes is None:
        return torch.rnn_tanh(input, h0, *settings, False)
    return torch.rnn_tanh(input, batch_sizes, h0, *settings)


def _ours(target: Target) -> Callable[..., Any]:
    def move(value: Any) -> Any:
        return value.to(target.device) if isinstance(value, Tensor) and not value.is_meta else value

    def run(input: Any, h0: Any, weights: list[Tensor], layers: int = 1, lengths: Tensor | None = None, **options: Any) -> Any:
        return tu.rnn(
            move(input), move(h0), [move(tensor) for tensor in weights], num_layers=layers, lengths=move(lengths), **options,
            engine=target.engine,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_rnn_as_torch(target: Target, name: str) -> None:
    call, argument = BOTH[name]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 (its type is the answer)
        call(_torchs)
    with pytest.raises(theirs.type, match=argument) as ours:
        call(_ours(target))
    assert ours.type is theirs.type


@pytest.mark.parametrize("name", ONLY_OURS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_rnn_beyond_torch(target: Target, name: str) -> None:
    call, argument = ONLY_OURS[name]
    with pytest.raises(RuntimeError, match=argument):
        call(_ours(target))


CELL: dict[str, Call] = {
    "input too wide": lambda f: f(_t(N, I + 1), _t(N, H), *_weights()),
    "input of rank 3": lambda f: f(_t(1, N, I), _t(1, N, H), *_weights()),
    "h of another batch": lambda f: f(_t(N, I), _t(N + 1, H), *_weights()),
    "h too wide": lambda f: f(_t(N, I), _t(N, H + 1), *_weights()),
    "h of another dtype": lambda f: f(_t(N, I), _t(N, H, dtype=DOUBLE), *_weights()),
    "h on another device": lambda f: f(_t(N, I), _t(N, H).to("meta"), *_weights()),
    "input of another dtype": lambda f: f(_t(N, I, dtype=DOUBLE), _t(N, H), *_weights()),
    "w_ih of another dtype": lambda f: f(_t(N, I), _t(N, H), *_weights(w_ih=_t(H, I, dtype=DOUBLE))),
    "w_ih too high": lambda f: f(_t(N, I), _t(N, H), *_weights(w_ih=_t(H + 1, I))),
    "w_hh too wide": lambda f: f(_t(N, I), _t(N, H), *_weights(w_hh=_t(H, H + 1))),
    "w_hh too high": lambda f: f(_t(N, I), _t(N, H), *_weights(w_hh=_t(H + 1, H))),
    "b_ih of another dtype": lambda f: f(_t(N, I), _t(N, H), *_weights(b_ih=_t(H, dtype=DOUBLE))),
    "b_ih too long": lambda f: f(_t(N, I), _t(N, H), *_weights(b_ih=_t(H + 1))),
    "b_hh too long": lambda f: f(_t(N, I), _t(N, H), *_weights(b_hh=_t(H + 1))),
    "input not a tensor": lambda f: f([1.0], _t(N, H), *_weights()),
}


@pytest.mark.parametrize("name", CELL)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_cell_as_torch(target: Target, name: str) -> None:
    def ours(*tensors: Any) -> Any:
        moved = (tensor.to(target.device) if isinstance(tensor, Tensor) and not tensor.is_meta else tensor for tensor in tensors)
        return tu.rnn_cell(*moved, engine=target.engine)

    with pytest.raises(Exception) as theirs:  # noqa: PT011
        CELL[name](torch.rnn_tanh_cell)
    with pytest.raises(theirs.type):
        CELL[name](ours)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_failed_call_changes_nothing(target: Target) -> None:
    x, h0 = torch.randn(X, device=target.device), torch.randn(1, N + 1, H, device=target.device)
    weights = [torch.randn_like(tensor, device=target.device) for tensor in _weights()]
    before = [tensor.clone() for tensor in (x, h0, *weights)]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"h0: expected shape \(1, 2, 4\), got \(1, 3, 4\)"):
        tu.rnn(x, h0, weights, engine=target.engine)
    for ours, theirs in zip((x, h0, *weights), before, strict=True):
        assert_exact(ours, theirs)
    assert_exact(torch.get_rng_state(), state)


def test_values_that_are_no_choice() -> None:
    weights = _weights()
    for nonlinearity in ("gelu", "", None):
        with pytest.raises(ValueError, match="nonlinearity: expected one of tanh, relu, sigmoid, identity, got"):
            tu.rnn(_t(*X), _t(*H0), weights, nonlinearity=nonlinearity)
        with pytest.raises(ValueError, match="nonlinearity: expected one of"):
            tu.rnn_cell(_t(N, I), _t(N, H), *weights, nonlinearity=nonlinearity)
    with pytest.raises(
        RuntimeError, match="batch_sizes: expected a sequence of at least one step"
    ):  # raised before torch's own operator is called
        tu.rnn(_t(0, I), _t(*H0), weights, batch_sizes=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="engine: expected one of"):
        tu.rnn(_t(*X), _t(*H0), weights, engine="cudnn")
    for bad in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="recompute_segments: expected a number above 0"):
            tu.rnn(_t(*X), _t(*H0), weights, recompute_segments=bad)
    with pytest.raises(ValueError, match="recompute_segments: expected None for bidirectional or packed input"):
        tu.rnn(_t(3, I), _t(*H0), weights, batch_sizes=torch.tensor([2, 1]), recompute_segments=2)
    with pytest.raises(RuntimeError, match="input: expected a floating-point dtype"):
        tu.rnn(_t(*X).long(), _t(*H0).long(), [tensor.long() for tensor in weights], engine="torch")
