"""Exact cases of recurrences, with signed permutations as weights, in every variant and arithmetic; and of single steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import ARITHMETIC, BY_INTEREST, Case, RefusedError, generator, integers
from torch_unroll.engines.interface import RnnOptions
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.rnn.cluster import CLUSTER
from torch_unroll.kernels.cuda.rnn.grid_exchange import GRID_EXCHANGE
from torch_unroll.kernels.cuda.rnn.persistent import tile_name
from torch_unroll.kernels.cuda.rnn.variants import SELECTORS

#: T, N, H, D. The variants differ in the H that they support, and in how they divide H and the batch.
SIZES = (
    (4, 3, 64, 1),
    (3, 32, 256, 1),
    (5, 9, 200, 2),
    (4, 32, 1024, 1),
    (6, 40, 1024, 1),
    (3, 17, 512, 2),
    (3, 64, 1760, 1),
    (4, 8, 1000, 1),
)
SMALL_SIZES = ((3, 3, 40, 2), (2, 9, 40, 1))
#: By variant, the numbers of row tiles that a block may hold; the other variants have no such choice.
ROW_TILES = {variant.name: variant.row_tiles for variant in (GRID_EXCHANGE, CLUSTER)}


class Inputs(NamedTuple):
    """Inputs on the CPU: `order` and `lengths` are integers, and the others float64.

    Row i of the weight of direction d holds `sign[d, i]` in column `order[d, i]`, and 0 elsewhere.
    """

    z: Tensor
    h0: Tensor
    dh: Tensor
    order: Tensor
    sign: Tensor
    lengths: Tensor

    @property
    def w(self) -> Tensor:
        D, H = self.order.shape
        return torch.zeros(D, H, H, dtype=torch.float64).scatter_(2, self.order[:, :, None], self.sign[:, :, None])


@cache
def inputs(T: int, N: int, H: int, D: int, seed: int) -> Inputs:
    """The inputs of all cases of these sizes."""
    draw = generator(seed, "rnn", T, N, H, D)
    z, h0, dh = integers((T, N, D * H), draw), integers((D, N, H), draw), integers((T, N, D * H), draw)
    order = torch.stack([torch.randperm(H, generator=draw) for _ in range(D)])
    sign = 2.0 * torch.randint(0, 2, (D, H), generator=draw).double() - 1
    lengths = torch.randint(0, T + 1, (N,), generator=draw)
    return Inputs(z=z, h0=h0, dh=dh, order=order, sign=sign, lengths=lengths)


@cache
def _exact(sizes: tuple[int, int, int, int], lengths: bool, relu: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """h, dz and dh0 by the formulas of the recurrence and of BPTT; multiplying by W_hh permutes the units and changes signs."""
    T, N, H, D = sizes
    drawn = inputs(T, N, H, D, seed)
    steps = drawn.lengths if lengths else torch.full((N,), T)
    h, dz, dh0 = torch.zeros_like(drawn.z), torch.zeros_like(drawn.z), torch.zeros_like(drawn.h0)
    for d in range(D):
        part = slice(d * H, (d + 1) * H)
        forwards = list(range(T))[:: -1 if d else 1]
        state, carried = drawn.h0[d], torch.zeros(N, H, dtype=torch.float64)
        for t in forwards:
            active = (t < steps)[:, None]
            following = drawn.z[t, :, part] + state[:, drawn.order[d]] * drawn.sign[d]
            state = torch.where(active, following.clamp(min=0) if relu else following, state)
            h[t, :, part] = state * active
        for t in reversed(forwards):
            active = (t < steps)[:, None]
            total = drawn.dh[t, :, part] + carried
            dz[t, :, part] = (total * (h[t, :, part] > 0) if relu else total) * active
            propagated = torch.zeros_like(carried).index_add_(1, drawn.order[d], dz[t, :, part] * drawn.sign[d])
            carried = torch.where(active, propagated, carried)
        dh0[d] = carried
    return h, dz, dh0


@dataclass(frozen=True)
class RnnCase(Case):
    """One pass over one layer; with `row_tiles` 0 the variant decides how many tiles of rows a block holds."""

    op: ClassVar[str] = "rnn"
    direction: str  # "forward" or "backward"
    variant: str
    arithmetic: str
    row_tiles: int
    T: int
    N: int
    H: int
    D: int
    lengths: bool
    nonlinearity: str
    seed: int = 0

    @property
    def job(self) -> str:
        return f"rnn {self.direction} {self.variant} {self.arithmetic}"

    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        dtype = ARITHMETIC[self.arithmetic]
        drawn = inputs(self.T, self.N, self.H, self.D, self.seed)
        w, h0 = drawn.w.to(device, dtype), drawn.h0.to(device, dtype)
        lengths = drawn.lengths.to(device) if self.lengths else None
        settings = (w, h0, RnnOptions(lengths, None, self.nonlinearity, "tf32" if self.arithmetic == "tf32" else "ieee"))
        tile = tile_name(self.row_tiles) if self.row_tiles else ""
        with planning.force("rnn", planning.Configuration(self.variant, tile) if tile else self.variant):
            try:
                if self.direction == "forward":
                    return {"h": engine.rnn_forward(drawn.z.to(device, dtype), *settings)}
                h = self.exact()[0].to(device, dtype)
                dz, dh0 = engine.rnn_backward(drawn.dh.to(device, dtype), h, *settings)
            except RuntimeError as error:
                if re.match(r"rnn_\w+: (no variant takes|\w+ has tiles) ", str(error)):
                    raise RefusedError(str(error)) from error
                raise
        return {"dz": dz, "dh0": dh0}

    def expected(self) -> Mapping[str, Tensor]:
        h, dz, dh0 = (tensor.to(ARITHMETIC[self.arithmetic]) for tensor in self.exact())
        return {"h": h} if self.direction == "forward" else {"dz": dz, "dh0": dh0}

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """h, dz and dh0 in float64."""
        return _exact((self.T, self.N, self.H, self.D), self.lengths, self.nonlinearity == "relu", self.seed)


@dataclass(frozen=True)
class RnnCellCase(Case):
    """A single step, with weights of -1, 0 and 1."""

    op: ClassVar[str] = "rnn_cell"
    direction: str
    arithmetic: str
    N: int
    I: int  # noqa: E741 (the usual letter of the input size)
    H: int
    bias: bool
    nonlinearity: str
    seed: int = 0

    @property
    def job(self) -> str:
        return f"rnn_cell {self.direction} {self.arithmetic}"

    def inputs(self) -> dict[str, Tensor]:
        """The inputs by name, in float64 on the CPU."""
        sizes: dict[str, tuple[int, ...]] = {
            "x": (self.N, self.I),
            "h": (self.N, self.H),
            "w_ih": (self.H, self.I),
            "w_hh": (self.H, self.H),
        }
        if self.bias:
            sizes |= {"b_ih": (self.H,), "b_hh": (self.H,)}
        draw = generator(self.seed, "rnn_cell", self.N, self.I, self.H)
        return {name: integers(size, draw) for name, size in (sizes | {"dh_next": (self.N, self.H)}).items()}

    def _next(self, drawn: Mapping[str, Tensor]) -> Tensor:
        bias = drawn["b_ih"] + drawn["b_hh"] if self.bias else 0
        h_next = drawn["x"] @ drawn["w_ih"].mT + drawn["h"] @ drawn["w_hh"].mT + bias
        return h_next.clamp(min=0) if self.nonlinearity == "relu" else h_next

    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        exact = self.inputs()
        drawn = {name: tensor.to(device, ARITHMETIC[self.arithmetic]) for name, tensor in exact.items()}
        settings = (self.nonlinearity, "tf32" if self.arithmetic == "tf32" else "ieee")
        weights = (drawn["w_ih"], drawn["w_hh"])
        if self.direction == "forward":
            biases = (drawn.get("b_ih"), drawn.get("b_hh"))
            return {"h_next": engine.rnn_cell_forward(drawn["x"], drawn["h"], *weights, *biases, *settings)}
        h_next = self._next(exact).to(device, ARITHMETIC[self.arithmetic])
        results = engine.rnn_cell_backward(drawn["dh_next"], h_next, *weights, *settings)
        return dict(zip(("dz", "dx", "dh"), results, strict=True))

    def expected(self) -> Mapping[str, Tensor]:
        drawn, dtype = self.inputs(), ARITHMETIC[self.arithmetic]
        h_next = self._next(drawn)
        if self.direction == "forward":
            return {"h_next": h_next.to(dtype)}
        dz = drawn["dh_next"] * (h_next > 0) if self.nonlinearity == "relu" else drawn["dh_next"]
        return {"dz": dz.to(dtype), "dx": (dz @ drawn["w_ih"]).to(dtype), "dh": (dz @ drawn["w_hh"]).to(dtype)}


def cases(small: bool, seed: int) -> Iterator[Case]:
    """All cases; some of them are refused by their variant when they are computed."""
    for variant, arithmetic, direction in product(SELECTORS["rnn_forward"].by_name, BY_INTEREST, ("forward", "backward")):
        for row_tiles in (0, *ROW_TILES.get(variant, ())):
            for sizes, lengths, nonlinearity in product(SMALL_SIZES if small else SIZES, (False, True), ("identity", "relu")):
                T, N, H, D = sizes
                yield RnnCase(
                    direction=direction,
                    variant=variant,
                    arithmetic=arithmetic,
                    row_tiles=row_tiles,
                    T=T,
                    N=N,
                    H=H,
                    D=D,
                    lengths=lengths,
                    nonlinearity=nonlinearity,
                    seed=seed,
                )
    cells = ((3, 19, 21), (9, 24, 40)) if small else ((3, 19, 21), (9, 64, 96), (32, 128, 256), (70, 40, 33))
    for direction, arithmetic, extents, bias, nonlinearity in product(
        ("forward", "backward"), BY_INTEREST, cells, (False, True), ("identity", "relu")
    ):
        if not (bias and direction == "backward"):
            N, I, H = extents  # noqa: E741
            yield RnnCellCase(
                direction=direction, arithmetic=arithmetic, N=N, I=I, H=H, bias=bias, nonlinearity=nonlinearity, seed=seed
            )
