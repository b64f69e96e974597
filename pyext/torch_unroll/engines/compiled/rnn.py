"""Host code of the recurrent kernels: one layer's pass over all of its steps, and one step on its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.recording import note_selection, note_workspace
from torch_unroll.engines.interface import NONLINEARITIES, RecurrentWeights, RnnOptions
from torch_unroll.engines.packed import batch_size, packed_rows, set_state
from torch_unroll.kernels.cuda.rnn.grid_exchange import GRID_EXCHANGE
from torch_unroll.kernels.cuda.rnn.parameters import ElmanCell, RnnCellParameters, RnnMatrix, RnnParameters, StepStride
from torch_unroll.kernels.cuda.rnn.problem import CellStep, Recurrence
from torch_unroll.kernels.cuda.rnn.step import STEP
from torch_unroll.kernels.cuda.rnn.tile import FRAGMENT_BYTES
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS
from torch_unroll.kernels.shapes import RnnShape
from torch_unroll.shapes import dtype_name

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rnn_forward(
    launcher: Launcher,
    z: Tensor,
    w_hh: RecurrentWeights,
    h0: Tensor | None,
    options: RnnOptions,
    h_n: Tensor | None = None,
) -> Tensor:
    """Runs all steps of a layer: h[t] = f(z[t] + W_hh h[t - 1]).

    In direction 1, h[t + 1] takes the place of h[t - 1].

    Args:
        z: (T, N, D·H), or packed (total, D·H).
        w_hh: (D, H, H), or D tensors (H, H).
        h0: (D, N, H), or None for zeros.
        h_n: (D, N, H), contiguous, or None; it is overwritten with the state after the step that a direction computes last.

    Returns:
        h like z; 0 past a sample's length.
    """
    z = _unit_stride(z)
    h = torch.empty_like(z)
    if z.numel() == 0:
        if h_n is not None:
            set_state(h_n, h0)
        return h
    h0 = None if h0 is None else h0.contiguous()
    layer = _Layer(launcher, w_hh, h, options, backward=False)
    layer.launch(
        products=layer.T,
        state=h,
        aligned=_rows_aligned(layer.H, h, *(() if h0 is None else (h0,))),
        z=z.data_ptr(),
        z_stride=_step_stride(z),
        h0=_address(h0),
        h=h.data_ptr(),
        h_stride=_step_stride(h),
        h_n=_address(h_n),
    )
    return h


def rnn_backward(
    launcher: Launcher,
    dh: Tensor | None,
    h: Tensor,
    w_hh: RecurrentWeights,
    h0: Tensor | None,
    options: RnnOptions,
    dh_n: Tensor | None = None,
    with_dh0: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Back-propagates through time: dz[t] = f' · (dh[t] + W_hhᵀ dz[t + 1]).

    f' is the derivative of f at z[t] + W_hh h[t - 1], computed from h[t]. In direction 1, t - 1 and t + 1 are exchanged.

    Args:
        dh: like h, or None for zeros.
        h: what `rnn_forward` returned for w_hh and h0.
        h0: not read.
        dh_n: (D, N, H), the gradient of h_n, or None for zeros.
        with_dh0: whether dh0 is wanted.

    Returns:
        dz like h, 0 past a sample's length, and dh0 (D, N, H), or None if it is not wanted.
    """
    dh, h = None if dh is None else _unit_stride(dh), _unit_stride(h)
    dz = torch.empty_like(h)
    D = len(w_hh)
    dh0 = h.new_empty(D, batch_size(h, options.batch_sizes), h.shape[-1] // D) if with_dh0 else None
    if h.numel() == 0:
        if dh0 is not None:
            set_state(dh0, dh_n)
        return dz, dh0
    dh_n = None if dh_n is None else dh_n.contiguous()
    layer = _Layer(launcher, w_hh, dz, options, backward=True)
    layer.launch(
        products=layer.T + with_dh0,
        state=dz,
        aligned=_rows_aligned(layer.H, dz),
        dh=_address(dh),
        dh_stride=StepStride() if dh is None else _step_stride(dh),
        h=h.data_ptr(),
        h_stride=_step_stride(h),
        dh_n=_address(dh_n),
        dz=dz.data_ptr(),
        dz_stride=_step_stride(dz),
        dh0=_address(dh0),
    )
    return dz, dh0


class _Matrix(NamedTuple):
    """The matrix of a direction, which multiplies the state: W_hh in the forward pass, its transpose in the backward pass."""

    data: int
    row: int  # strides
    column: int

    def is_aligned(self, H: int, item_bytes: int) -> bool:
        """Whether its rows are contiguous, and start and end at multiples of FRAGMENT_BYTES."""
        bytes_ = (self.data, self.row * item_bytes, H * item_bytes)
        return self.column == 1 and not any(number % FRAGMENT_BYTES for number in bytes_)


def _matrices(w_hh: RecurrentWeights, transposed: bool) -> list[_Matrix]:
    """Returns the matrix of each direction."""
    if isinstance(w_hh, Tensor):
        start, (step, *strides), item_bytes = w_hh.data_ptr(), w_hh.stride(), w_hh.element_size()
        parts = [(start + d * step * item_bytes, *strides) for d in range(len(w_hh))]
    else:
        parts = [(w.data_ptr(), *w.stride()) for w in w_hh]
    return [_Matrix(data, column, row) if transposed else _Matrix(data, row, column) for data, row, column in parts]


def _packed(w_hh: RecurrentWeights, transposed: bool) -> Tensor:
    """Returns a contiguous copy of the matrices, whose rows are padded with zeros to a multiple of FRAGMENT_BYTES."""
    D, H, first = len(w_hh), w_hh[0].shape[0], w_hh[0]
    padding = -H % (FRAGMENT_BYTES // first.element_size())
    padded = (first.new_zeros if padding else first.new_empty)(D, H, H + padding)
    for part, w in zip(padded, w_hh, strict=True):
        part[:, :H].copy_(w.mT if transposed else w)
    return padded


class _Layer:
    """The extents, lengths and options of a pass over a layer. It holds the tensors that it makes for the kernels (a copy of the
    matrices, the lengths and the offsets of packed steps), so that they live until the launch.

    Args:
        sequence: the output, (T, N, D·H) or packed.
    """

    def __init__(self, launcher: Launcher, w_hh: RecurrentWeights, sequence: Tensor, options: RnnOptions, *, backward: bool):
        self.launcher, self.nonlinearity, self.precision = launcher, options.nonlinearity, options.precision
        self.w_hh, self.backward = w_hh, backward
        self.dtype, self.device = sequence.dtype, sequence.device
        self.D = len(w_hh)
        self.H = sequence.shape[-1] // self.D
        self.N = batch_size(sequence, options.batch_sizes)
        self.T = sequence.shape[0] if options.batch_sizes is None else len(options.batch_sizes)
        self.lengths = self.step_offsets = None
        if options.batch_sizes is not None:
            self.step_offsets, self.lengths = packed_rows(options.batch_sizes, self.device)
        elif options.lengths is not None:
            self.lengths = options.lengths.to(torch.int64).contiguous()

    def launch(self, *, products: int, state: Tensor, aligned: bool, **fields: Any) -> None:
        """Launches the pass.

        Args:
            products: how often the state is multiplied by the matrix.
            state: the output that also carries the state from step to step, h or dz.
            aligned: whether every row of the tensors that hold the state starts at a multiple of 16 bytes.
            fields: the pass's own fields of `RnnParameters`.
        """
        problem = Recurrence(
            backward=self.backward,
            T=self.T,
            N=self.N,
            H=self.H,
            D=self.D,
            dtype=dtype_name(self.dtype),
            precision=self.precision,
            aligned=aligned,
        )
        selector = SELECTORS["rnn_backward" if self.backward else "rnn_forward"]
        selected = selector.select(problem, self.launcher.properties(self.device))
        note_selection(selected)
        if selected.variant is GRID_EXCHANGE:
            state.view(_INTEGERS[state.element_size()]).fill_(-1)  # sets all bits of every element: the sentinel
        plan = selected.plan
        matrices, aligned_w = _matrices(self.w_hh, self.backward), True
        if not all(matrix.is_aligned(self.H, state.element_size()) for matrix in matrices):
            aligned_w = selected.variant is STEP
            if aligned_w:  # every step reads the matrices again, so a copy pays
                packed = _packed(self.w_hh, self.backward)
                note_workspace(packed)
                matrices = _matrices(packed, False)
        parameters = self.parameters(matrices, aligned_w=aligned_w, aligned_state=aligned, products=products, **fields)
        for step in range(products if selected.variant is STEP else 1):
            parameters.step = step
            self.launcher.launch(plan, parameters, self.device)

    def parameters(self, matrices: list[_Matrix], **fields: Any) -> RnnParameters:
        """Returns the struct with the layer's own fields and those of a pass."""
        return RnnParameters(
            w=(RnnMatrix * 2)(*(RnnMatrix(*matrix) for matrix in matrices)),
            lengths=_address(self.lengths),
            step_offsets=_address(self.step_offsets),
            D=self.D,
            shape=RnnShape(T=self.T, N=self.N, H=self.H),
            cell=_cell(self.nonlinearity),
            **fields,
        )


def rnn_cell_forward(
    launcher: Launcher,
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    nonlinearity: str,
    precision: str,
) -> Tensor:
    """Makes one step, like `torch.rnn_tanh_cell`: x (N, I), h (N, H) -> the next h (N, H)."""
    h_next = h.new_empty(h.shape)
    if h.numel() == 0:
        return h_next
    x, h, w_ih, w_hh = map(_unit_stride, (x, h, w_ih, w_hh))
    b_ih, b_hh = (None if bias is None else _unit_stride(bias) for bias in (b_ih, b_hh))
    parameters = RnnCellParameters(
        x=x.data_ptr(),
        x_stride=x.stride(0),
        h=h.data_ptr(),
        h_stride=h.stride(0),
        w_ih=w_ih.data_ptr(),
        w_ih_stride=w_ih.stride(0),
        w_hh=w_hh.data_ptr(),
        w_hh_stride=w_hh.stride(0),
        b_ih=_address(b_ih),
        b_hh=_address(b_hh),
        h_next=h_next.data_ptr(),
        h_next_stride=h_next.stride(0),
        aligned=all(_rows_aligned(tensor.shape[-1], tensor) for tensor in (x, h, w_ih, w_hh, h_next)),
        shape=RnnShape(N=h.shape[0], I=w_ih.shape[1], H=h.shape[1]),
        cell=_cell(nonlinearity),
    )
    _launch_cell(launcher, False, parameters, h, precision)
    return h_next


def rnn_cell_backward(
    launcher: Launcher, dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a step: dz (N, H), dx (N, I), dh (N, H)."""
    dz, dh = h_next.new_empty(h_next.shape), h_next.new_empty(h_next.shape)
    dx = h_next.new_empty(h_next.shape[0], w_ih.shape[1])
    if h_next.numel() == 0:
        return dz, dx, dh
    dh_next, h_next, w_ih, w_hh = map(_unit_stride, (dh_next, h_next, w_ih, w_hh))
    parameters = RnnCellParameters(
        dh_next=dh_next.data_ptr(),
        dh_next_stride=dh_next.stride(0),
        h_next=h_next.data_ptr(),
        h_next_stride=h_next.stride(0),
        w_ih=w_ih.data_ptr(),
        w_ih_stride=w_ih.stride(0),
        w_hh=w_hh.data_ptr(),
        w_hh_stride=w_hh.stride(0),
        dz=dz.data_ptr(),
        dx=dx.data_ptr(),
        dh=dh.data_ptr(),
        aligned=all(_rows_aligned(tensor.shape[-1], tensor) for tensor in (dh_next, h_next, w_ih, w_hh)),
        shape=RnnShape(N=h_next.shape[0], I=w_ih.shape[1], H=h_next.shape[1]),
        cell=_cell(nonlinearity),
    )
    _launch_cell(launcher, True, parameters, h_next, precision)
    return dz, dx, dh


def _launch_cell(launcher: Launcher, backward: bool, parameters: RnnCellParameters, h: Tensor, precision: str) -> None:
    """Launches a step whose extents are in the struct, in the dtype and on the device of `h`."""
    shape, dtype = parameters.shape, dtype_name(h.dtype)
    problem = CellStep(backward=backward, N=shape.N, I=shape.I, H=shape.H, dtype=dtype, precision=precision)
    selector = SELECTORS["rnn_cell_backward" if backward else "rnn_cell_forward"]
    selected = selector.select(problem, launcher.properties(h.device))
    note_selection(selected)
    launcher.launch(selected.plan, parameters, h.device)


def _cell(nonlinearity: str) -> ElmanCell:
    return ElmanCell(nonlinearity=NONLINEARITIES.index(nonlinearity))


def _address(tensor: Tensor | None) -> int | None:
    """Returns the address of a tensor's first element; null for None."""
    return None if tensor is None else tensor.data_ptr()


def _unit_stride(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a copy if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _step_stride(tensor: Tensor) -> StepStride:
    """Returns the strides from step to step and from sample to sample; for packed data, both are the stride between rows."""
    return StepStride(t=tensor.stride(0), n=tensor.stride(-2))


def _rows_aligned(length: int, *tensors: Tensor) -> bool:
    """Whether all rows start at multiples of 16 bytes, and so does the element at `length` of each row, where the features of the
    second direction start."""
    for tensor in tensors:
        start = 0 if tensor.is_meta else tensor.data_ptr()  # torch aligns what it allocates to more than 16 bytes
        if start % 16 or any(extent * tensor.element_size() % 16 for extent in (length, *tensor.stride()[:-1])):
            return False
    return True
