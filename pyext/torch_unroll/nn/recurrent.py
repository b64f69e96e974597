"""Recurrent modules of torch.nn, computed by torch_unroll."""

from __future__ import annotations

from typing import Any, Never, overload

import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from torch_unroll.engines.interface import NONLINEARITIES
from torch_unroll.nn.leaf import is_recorded, record
from torch_unroll.programs import is_transformed
from torch_unroll.rnn import RNN_SHORTCUTS, rnn, rnn_cell

#: The attribute `mode`, spelled as in torch.nn.RNN -> the nonlinearity that it selects.
_MODES = {f"RNN_{nonlinearity.upper()}": nonlinearity for nonlinearity in NONLINEARITIES}


class RNN(RNNBase):
    """`torch.nn.RNN` computed by `torch_unroll.rnn`: same constructor, parameters, state_dict and repr. It can be pickled.

    It is derived from nn.RNN's base class, because torch.compile rejects every subclass of nn.RNN itself. As in nn.RNN, `mode`
    determines what is computed; `nonlinearity` only records the constructor's argument.

    Args beyond torch's: nonlinearity "sigmoid" and "identity"; `engine`, as in `torch_unroll.rnn`.
    """

    engine: str | None = None  # for modules that `torch_unroll.replace` made: it does not call __init__

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        engine: str | None = None,
        **unknown: Never,
    ):
        if "proj_size" in unknown:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if unknown:
            raise TypeError(f"RNN.__init__() got an unexpected keyword argument {next(iter(unknown))!r}")
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from {', '.join(map(repr, NONLINEARITIES))}.")
        super().__init__(
            "RNN_TANH",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.mode = f"RNN_{nonlinearity.upper()}"
        self.nonlinearity = nonlinearity
        self.engine = engine

    def flatten_parameters(self) -> None:
        """Does nothing. In torch's module it moves the weights into one block of memory for cuDNN."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Checks the input as torch does, but against the parameters that forward reads. Torch checks against the list
        `_flat_weights`, which may hold the old ones when functional_call or a parametrization replaces them."""
        dtype = getattr(self, self._flat_weights_names[0]).dtype
        if input.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        rank = 3 if batch_sizes is None else 2
        if input.dim() != rank:
            raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}")

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input: Any, hx: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Any, Tensor]:
        """As in `torch.nn.RNN`; `lengths` (N), on input's device, is the number of valid steps of each padded sample."""
        if lengths is None and not torch.compiler.is_compiling() and (results := self._shortcut(input, hx)) is not None:
            return results
        if is_recorded(self, input, hx, lengths):
            return record(self, input, hx, lengths)
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            hx = None if hx is None else self.permute_hidden(hx, sorted_indices)
            self.check_input(data, batch_sizes)
            if hx is not None and not is_transformed():  # otherwise the operator compares the sizes when it runs
                self.check_hidden_size(hx, self.get_expected_hidden_size(data, batch_sizes))
            output, h_n = self._run(data, hx, batch_sizes=batch_sizes, lengths=lengths)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(h_n, unsorted_indices)
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if input.dim() == 3 else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        if input.dim() == 2:
            batch_dim = 0 if self.batch_first else 1
            output, h_n = self.forward(input.unsqueeze(batch_dim), None if hx is None else hx.unsqueeze(1), lengths=lengths)
            return output.squeeze(batch_dim), h_n.squeeze(1)
        self.check_input(input, None)
        if hx is not None:
            self.check_hidden_size(hx, self.get_expected_hidden_size(input, None))
        return self._run(input, hx, batch_first=self.batch_first, lengths=lengths)

    def _shortcut(self, input: Any, hx: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Runs the layers by the shortcut of `rnn`, if there is one."""
        parameters = self._parameters
        try:
            weights = [parameters[name] for name in self._flat_weights_names]
        except KeyError:  # a parametrization computes it
            return None
        dropout = self.dropout if self.training else 0.0
        options = (_MODES.get(self.mode), self.num_layers, self.bidirectional, dropout, self.batch_first, self.engine)
        results: tuple[Tensor, Tensor] | None = RNN_SHORTCUTS.take((input, hx, *weights), options)
        return results

    def _run(self, input: Tensor, hx: Tensor | None, **layout: Any) -> tuple[Tensor, Tensor]:
        if self.mode not in _MODES:
            raise AssertionError(f"mode must be one of {', '.join(_MODES)}, got {self.mode}")
        return rnn(
            input,
            hx,
            [getattr(self, name) for name in self._flat_weights_names],
            nonlinearity=_MODES[self.mode],
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            engine=self.engine,
            **layout,
        )


class RNNCell(torch.nn.RNNCell):
    """`torch.nn.RNNCell` computed by `torch_unroll.rnn_cell`: same constructor, parameters, state_dict and repr.

    Args beyond torch's: nonlinearity "sigmoid" and "identity"; `engine`, as in `torch_unroll.rnn_cell`.
    """

    engine: str | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        engine: str | None = None,
    ):
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self.engine = engine

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_recorded(self, input, hx):
            return record(self, input, hx)
        if input.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        if self.nonlinearity not in NONLINEARITIES:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        x = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            state = x.new_zeros(x.shape[0], self.hidden_size)
        else:
            state = hx if input.dim() == 2 else hx.unsqueeze(0)
        h_next = rnn_cell(
            x,
            state,
            self.weight_ih,
            self.weight_hh,
            self.bias_ih,
            self.bias_hh,
            nonlinearity=self.nonlinearity,
            engine=self.engine,
        )
        return h_next if input.dim() == 2 else h_next.squeeze(0)
