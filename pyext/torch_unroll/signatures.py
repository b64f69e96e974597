"""Functions with the signatures of torch's C++ functions, which accept arguments by position or by name; some are overloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

#: The names that torch's C++ functions also accept for their argument `input`, for the sake of numpy.
_ALSO_INPUT = ("x", "a", "x1")


def _bind(parameters: tuple[str, ...], required: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call by name; None if a function with these parameters would not accept it."""
    arguments = dict(zip(parameters, args, strict=False))
    for name, value in kwargs.items():
        name = "input" if name in _ALSO_INPUT and "input" in parameters else name
        if name in arguments or name not in parameters:
            return None
        arguments[name] = value
    complete = all(name in arguments for name in parameters[:required]) and len(args) <= len(parameters)
    return arguments if complete else None


def like(theirs: Callable[..., Any], ours: Callable[..., Any], required: str, optional: str = "") -> Callable[..., Any]:
    """A function that passes the calls that torch's C++ function accepts to ours, and all others to torch's, which raises.
    `required` and `optional` are the names of the parameters in their order, separated by spaces."""
    parameters, count = (*required.split(), *optional.split()), len(required.split())

    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and count <= len(args) <= len(parameters):
            return ours(*args)
        arguments = _bind(parameters, count, args, kwargs)
        return theirs(*args, **kwargs) if arguments is None else ours(**arguments)

    return call


_RNN_PARAMETERS = ("params", "has_biases", "num_layers", "dropout", "train", "bidirectional")
#: The overloads of `torch.rnn_tanh` and `torch.rnn_relu`, in the order in which torch tries them.
_RNN_OVERLOADS = (
    ("data", "batch_sizes", "hx", *_RNN_PARAMETERS),
    ("input", "hx", *_RNN_PARAMETERS, "batch_first"),
)
_RNN_KINDS: dict[str, Any] = {
    **dict.fromkeys(("data", "batch_sizes", "input", "hx"), Tensor),
    **dict.fromkeys(("has_biases", "train", "bidirectional", "batch_first"), bool),
    "params": (list, tuple),
    "dropout": (float, int, Tensor),
}


def _bind_rnn(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    for parameters in _RNN_OVERLOADS:
        arguments = _bind(parameters, len(parameters), args, kwargs)
        if arguments is not None and all(isinstance(arguments[name], _RNN_KINDS.get(name, object)) for name in parameters):
            return arguments
    return None


def like_rnn(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """`torch_unroll.rnn` with the signature of `torch.rnn_tanh` and `torch.rnn_relu`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = _bind_rnn(args, kwargs)
        if arguments is None:
            return theirs(*args, **kwargs)
        parts = arguments["num_layers"] * (2 if arguments["bidirectional"] else 1)
        if len(arguments["params"]) != parts * (4 if arguments["has_biases"] else 2):
            return theirs(*args, **kwargs)
        packed = "data" in arguments
        return ours(
            arguments["data" if packed else "input"],
            arguments["hx"],
            arguments["params"],
            num_layers=arguments["num_layers"],
            bidirectional=arguments["bidirectional"],
            dropout=arguments["dropout"],
            training=arguments["train"],
            batch_first=not packed and arguments["batch_first"],
            batch_sizes=arguments["batch_sizes"] if packed else None,
        )

    return call


def like_rnn_cell(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """`torch_unroll.rnn_cell` with the signature of `torch.rnn_tanh_cell` and `torch.rnn_relu_cell`."""

    def call(
        input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        return ours(input, hx, w_ih, w_hh, b_ih, b_hh)

    return like(theirs, call, "input hx w_ih w_hh", "b_ih b_hh")
