"""Host code of the recurrent kernels: one layer's pass over all of its steps, and one step on its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.recording import note_choice, note_workspace
from torch_unroll.engines.interface import RnnOptions
from torch_unroll.engines.packed import packed_rows
from torch_unroll.kernels.cuda.rnn import variants
from torch_unroll.kernels.cuda.rnn.variants import Recurrence, RnnCellParameters, RnnParameters, StepStride
from torch_unroll.kernels.shapes import SizeError
from torch_unroll.kernels.table import LaunchPlan

#: The name of the variant that passes must run, or raise; None: the table chooses. For tests and measurements.
forced: str | None = None

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rnn_forward(launcher: Launcher, z: Tensor, w_hh: Tensor, h0: Tensor, options: RnnOptions) -> Tensor:
    """z (T, N, D·H) or packed (total, D·H), w_hh (D, H, H), h0 (D, N, H) -> h like z; 0 past a sample's length."""
    z = _unit_stride(z)
    h = torch.empty_like(z)
    if z.numel() == 0:
        return h
    h0 = h0.contiguous()
    layer = _Layer(launcher, w_hh, h0, options.batch_sizes, steps=z.shape[0], precision=options.precision)
    parameters, _keep = layer.parameters(w_hh, options.lengths, options.nonlinearity)
    parameters.z, parameters.z_stride = z.data_ptr(), _step_stride(z)
    parameters.h, parameters.h_stride = h.data_ptr(), _step_stride(h)
    parameters.h0 = h0.data_ptr()
    parameters.aligned_carry = _rows_aligned(layer.H, h, h0)
    layer.run(False, parameters, h)
    return h


def rnn_backward(
    launcher: Launcher, dh: Tensor, h: Tensor, w_hh: Tensor, h0: Tensor, options: RnnOptions
) -> tuple[Tensor, Tensor]:
    """BPTT: dh like h -> dz like z, 0 past a sample's length, and dh0 like h0."""
    dh, h = _unit_stride(dh), _unit_stride(h)
    dz = torch.empty_like(h)
    if h.numel() == 0:
        return dz, torch.zeros_like(h0)
    dh0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
    layer = _Layer(launcher, w_hh, h0, options.batch_sizes, steps=h.shape[0], precision=options.precision)
    parameters, _keep = layer.parameters(w_hh.mT, options.lengths, options.nonlinearity)
    parameters.dh, parameters.dh_stride = dh.data_ptr(), _step_stride(dh)
    parameters.h, parameters.h_stride = h.data_ptr(), _step_stride(h)
    parameters.dz, parameters.dz_stride = dz.data_ptr(), _step_stride(dz)
    parameters.dh0 = dh0.data_ptr()
    parameters.aligned_carry = _rows_aligned(layer.H, dz)
    layer.run(True, parameters, dz)
    return dz, dh0


class _Layer:
    """What both passes over a layer share: its extents, and how its launches are chosen and made."""

    def __init__(
        self, launcher: Launcher, w_hh: Tensor, h0: Tensor, batch_sizes: tuple[int, ...] | None, *, steps: int, precision: str
    ):
        self.launcher, self.batch_sizes, self.precision = launcher, batch_sizes, precision
        self.dtype, self.device = w_hh.dtype, w_hh.device
        self.T = steps if batch_sizes is None else len(batch_sizes)
        self.D, self.N, self.H = h0.shape

    def choose(self, backward: bool, aligned: bool) -> LaunchPlan:
        """The first plan whose blocks, where they wait for each other, are resident together on this device."""
        properties = self.launcher.properties(self.device)
        recurrence = Recurrence(
            backward, self.T, self.N, self.H, self.D, str(self.dtype).removeprefix("torch."), self.precision, aligned,
            properties.multiprocessors, properties.capability, properties.shared_bytes_per_block,
        )  # fmt: skip
        choice = variants.choose(recurrence, forced)
        passed_over = list(choice.passed_over)
        for plan in choice.plans:
            if _fits(self.launcher, plan, self.device):
                note_choice("rnn_backward" if backward else "rnn_forward", tuple(passed_over))
                return plan
            passed_over.append((plan.variant, f"its {plan.config.grid} blocks do not fit on {self.device} together"))
        raise (RuntimeError if forced else SizeError)("; ".join(f"rnn variant {name}: {reason}" for name, reason in passed_over))

    def parameters(self, w: Tensor, lengths: Tensor | None, nonlinearity: str) -> tuple[RnnParameters, list[Tensor]]:
        """The struct without a pass's own tensors, and the tensors it points to, to be kept until the launches are made."""
        parameters = RnnParameters()
        rows = _padded_rows(w)
        if rows is not w:
            note_workspace(rows)
        keep = [rows]
        parameters.w, parameters.w_stride = rows.data_ptr(), rows.stride(1)
        if self.batch_sizes is not None:
            first_rows, sample_lengths = packed_rows(self.batch_sizes, self.device)
            keep += [first_rows, sample_lengths]
            parameters.step_offsets, parameters.lengths = first_rows.data_ptr(), sample_lengths.data_ptr()
        elif lengths is not None:
            lengths = lengths.to(torch.int64).contiguous()
            keep.append(lengths)
            parameters.lengths = lengths.data_ptr()
        parameters.D = self.D
        parameters.shape.T, parameters.shape.N, parameters.shape.H = self.T, self.N, self.H
        parameters.nonlinearity = variants.NONLINEARITIES.index(nonlinearity)
        return parameters, keep

    def run(self, backward: bool, parameters: RnnParameters, carried: Tensor) -> None:
        """Launches a pass; `carried` is the tensor it writes its state to."""
        plan = self.choose(backward, bool(parameters.aligned_carry))
        if plan.variant in variants.EXCHANGED_THROUGH_OUTPUT:
            carried.view(_INTEGERS[carried.element_size()]).fill_(-1)  # the sentinel: all bits set
        if plan.variant != "step":
            self.launcher.launch(plan, parameters, self.device)
            return
        for step in range(self.T + backward):
            parameters.step = step
            self.launcher.launch(plan, parameters, self.device)


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
    """x (N, I), h (N, H) -> the next h (N, H)."""
    h_next = h.new_empty(h.shape)
    parameters, _keep = _cell_parameters(
        nonlinearity, x=x, h=h, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh, h_next=h_next, extents=(h, w_ih)
    )
    for plan in _cell_plans(False, h, w_ih, precision):
        launcher.launch(plan, parameters, h.device)
    return h_next


def rnn_cell_backward(
    launcher: Launcher, dh_next: Tensor, h_next: Tensor, w_ih: Tensor, w_hh: Tensor, nonlinearity: str, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dz (N, H), dx (N, I), dh (N, H)."""
    dz, dh = h_next.new_empty(h_next.shape), h_next.new_empty(h_next.shape)
    dx = h_next.new_empty(h_next.shape[0], w_ih.shape[1])
    parameters, _keep = _cell_parameters(
        nonlinearity, dh_next=dh_next, h_next=h_next, w_ih=w_ih, w_hh=w_hh, dz=dz, dx=dx, dh=dh, extents=(h_next, w_ih)
    )
    for plan in _cell_plans(True, h_next, w_ih, precision):
        launcher.launch(plan, parameters, h_next.device)
    return dz, dx, dh


def _cell_plans(backward: bool, h: Tensor, w_ih: Tensor, precision: str) -> list[LaunchPlan]:
    if h.numel() == 0:
        return []
    return [variants.plan_cell(backward, *h.shape[:1], w_ih.shape[1], h.shape[1], str(h.dtype).removeprefix("torch."), precision)]


def _cell_parameters(
    nonlinearity: str, *, extents: tuple[Tensor, Tensor], **tensors: Tensor | None
) -> tuple[RnnCellParameters, list[Tensor]]:
    parameters = RnnCellParameters()
    strided = {field[0].removesuffix("_stride") for field in RnnCellParameters._fields_ if field[0].endswith("_stride")}
    keep = []
    aligned = True
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        tensor = _unit_stride(tensor)
        keep.append(tensor)
        setattr(parameters, name, tensor.data_ptr())
        if name in strided:
            setattr(parameters, f"{name}_stride", tensor.stride(0))
            aligned = aligned and _rows_aligned(tensor.shape[-1], tensor)
    h, w_ih = extents
    parameters.shape.N, parameters.shape.H = h.shape
    parameters.shape.I = w_ih.shape[1]
    parameters.aligned = aligned
    parameters.nonlinearity = variants.NONLINEARITIES.index(nonlinearity)
    return parameters, keep


_residency: dict[tuple[LaunchPlan, torch.device], bool] = {}


def _fits(launcher: Launcher, plan: LaunchPlan, device: torch.device) -> bool:
    """Whether the blocks that wait for each other are resident together: those of the grid, or of one cluster."""
    config = plan.config
    if not config.cooperative and config.cluster == (1, 1, 1):
        return True
    key = plan, device
    if key not in _residency:
        needed = config.grid[0] * config.grid[1] * config.grid[2] if config.cooperative else 1
        _residency[key] = launcher.properties(device).resident(plan) >= needed
    return _residency[key]


def _unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if its last dimension is not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _step_stride(tensor: Tensor) -> StepStride:
    """From step to step and from sample to sample; both a row of packed data."""
    return StepStride(tensor.stride(0), tensor.stride(-2))


def _rows_aligned(length: int, *tensors: Tensor) -> bool:
    """Whether rows of that length, one or two side by side, all start on 16 bytes."""
    for tensor in tensors:
        start = 0 if tensor.is_meta else tensor.data_ptr()  # torch allocates on more than 16 bytes
        if start % 16 or any(extent * tensor.element_size() % 16 for extent in (length, *tensor.stride()[:-1])):
            return False
    return True


def _padded_rows(w: Tensor) -> Tensor:
    """w (D, H, H) with contiguous rows of whole 16 bytes, filled up with zeros; itself where it is so already."""
    H = w.shape[-1]
    per_fragment = variants.FRAGMENT_BYTES // w.element_size()
    if H % per_fragment == 0 and w.is_contiguous() and w.data_ptr() % 16 == 0:
        return w
    return F.pad(w, (0, -H % per_fragment)).contiguous() if H % per_fragment else w.clone(memory_format=torch.contiguous_format)
