"""What the recurrent kernels are asked to compute."""

from __future__ import annotations

from typing import NamedTuple

from ...arithmetic import ceil_divide, round_up
from ...dtypes import ITEM_BYTES
from .tile import CHUNK_BYTES, TILE_COLUMNS, arithmetic

#: The template arguments that name a pass, forward first.
PASSES = ("ForwardPass<ElmanCell>", "BackwardPass<ElmanCell>")


class Recurrence(NamedTuple):
    """One pass over one layer."""

    backward: bool
    T: int  # steps
    N: int  # samples
    H: int  # hidden units
    D: int  # directions
    dtype: str
    precision: str  # of float32: "tf32" or "ieee"
    aligned: bool  # whether every row of the tensors that hold the state starts and ends at multiples of 16 bytes

    @property
    def key(self) -> str | None:
        """The key of the pass in choices.json, where the function's name precedes it; None if the pass is not aligned."""
        return f"{self.math}/T={self.T},N={self.N},H={self.H},D={self.D}" if self.aligned else None

    @property
    def math(self) -> str:
        """The C++ name of the arithmetic."""
        return arithmetic(self.dtype, self.precision)

    @property
    def template_pass(self) -> str:
        """The template argument that names the pass."""
        return PASSES[self.backward]

    @property
    def products(self) -> int:
        """How often the state is multiplied by W: at every step, and in the backward pass once more for dh0."""
        return self.T + self.backward

    @property
    def flop(self) -> float:
        """Floating-point operations of all products of the pass."""
        return 2.0 * self.products * self.N * self.D * self.H * self.H

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]

    @property
    def chunks(self) -> int:
        """Chunks of the product's K, which is H."""
        return ceil_divide(self.H * self.item_bytes, CHUNK_BYTES)

    @property
    def batch_tiles(self) -> int:
        """Column tiles of the batch."""
        return ceil_divide(self.N, TILE_COLUMNS)

    @property
    def state_buffer_bytes(self) -> int:
        """Bytes of one of the buffers of state_buffer.cuh, whose rows are padded to a multiple of 128 bytes."""
        return TILE_COLUMNS * round_up(self.H * self.item_bytes, 128)


class CellStep(NamedTuple):
    """One step on its own."""

    backward: bool
    N: int  # samples
    I: int  # input features  # noqa: E741 (the field's letter)
    H: int  # hidden units
    dtype: str
    precision: str  # of float32: "tf32" or "ieee"

    @property
    def math(self) -> str:
        """The C++ name of the arithmetic."""
        return arithmetic(self.dtype, self.precision)

    @property
    def flop(self) -> float:
        """Floating-point operations of the products with both weights."""
        return 2.0 * self.N * self.H * (self.I + self.H)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]
