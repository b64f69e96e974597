"""The terms of which the derivatives of a recurrence are composed.

A direction visits the steps forwards or backwards in time (see `Steps`). In the order of its visits, v_t⁻ is v at the step before
step t, and v_t⁺ is v at the step after step t. At the first step of a sample, v_t⁻ is the value that v has for the initial state
(h0 if v is h, u0 if v is u); at its last step, v_t⁺ is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_unroll.nonlinearity import curvature
from torch_unroll.ops.linear import linear, outer
from torch_unroll.ops.rnn_layer import one_direction
from torch_unroll.ops.rnn_steps import Steps


class Options(NamedTuple):
    """The last arguments of the operators of recurrence, over a sequence and of a single step."""

    nonlinearity: str
    precision: str
    engine: str

    @property
    def slope_depends_on_h(self) -> bool:
        """Whether f' is not constant."""
        return self.nonlinearity != "identity"

    @property
    def has_curvature(self) -> bool:
        """Whether f' has a derivative with respect to h that is not 0 everywhere."""
        return self.nonlinearity in ("tanh", "sigmoid")


@dataclass(frozen=True)
class Recurrence:
    """The recurrence of one call, h_t = f(z_t + W h_t⁻), with the matrices W (D, H, H).

    A sequence has the features (..., D·H) of all directions; a state is (D, N, H).
    """

    w: Tensor
    steps: Steps
    options: Options

    def product_with_previous(self, v: Tensor, start: Tensor, w: Tensor | None = None) -> Tensor:
        """W v_t⁻ for every step t; v_t⁻ is `start` at the first step. If `w` is given, it replaces W."""
        return self._product(self.steps.previous, v, start, w, transposed=False)

    def product_with_following(self, v: Tensor, start: Tensor, w: Tensor | None = None) -> Tensor:
        """Wᵀ v_t⁺ for every step t. Only the shape of `start` is used. If `w` is given, it replaces W."""
        return self._product(self.steps.following, v, start, w, transposed=True)

    def product_into_start(self, v: Tensor, start: Tensor, w: Tensor | None = None) -> Tensor:
        """Wᵀ v_t, (D, N, H), for the step t that is walked first: what v contributes to the gradient of h0. Only the shape of
        `start` is used. If `w` is given, it replaces W."""
        matrices = self.w if w is None else w
        H = start.shape[-1]

        def product(d: int) -> Tensor:
            first = self.steps.first(one_direction(v, d, H), start[d], d)
            return linear(first, matrices[d].mT, None, self.options.precision, self.options.engine).unsqueeze(0)

        return _join_directions(start, product, dim=0)

    def weight_gradient(self, q: Tensor, u: Tensor, u0: Tensor) -> Tensor:
        """Σ_t q_t (u_t⁻)ᵀ, (D, H, H)."""
        H = u0.shape[-1]
        gradients = []
        for d in range(u0.shape[0]):
            previous = self.steps.previous(one_direction(u, d, H), u0[d], d)
            gradients.append(outer(one_direction(q, d, H), previous, self.options.precision, self.options.engine))
        return torch.stack(gradients)

    def curvature_term(self, h: Tensor, s: Tensor, a: Tensor) -> Tensor | None:
        """f''(h_t) s_t a_t, where f'' is the derivative of f' with respect to h; None if f'' is 0 everywhere.
        The term is 0 past the length of a sample."""
        second = curvature(self.options.nonlinearity, h)
        if second is None:
            return None
        product, running = second * s * a, self.steps.running(h)
        return product if running is None else torch.where(running, product, torch.zeros_like(product))

    def _product(
        self,
        shift: Callable[[Tensor, Tensor, int], Tensor],
        v: Tensor,
        start: Tensor,
        w: Tensor | None,
        transposed: bool,
    ) -> Tensor:
        matrices = self.w if w is None else w
        H = matrices.shape[-1]

        def product(d: int) -> Tensor:
            neighbours = shift(one_direction(v, d, H), start[d], d)
            matrix = matrices[d].mT if transposed else matrices[d]
            return linear(neighbours, matrix, None, self.options.precision, self.options.engine)

        return _join_directions(start, product)


def _join_directions(start: Tensor, function: Callable[[int], Tensor], dim: int = -1) -> Tensor:
    """Concatenates the results of `function` for all directions along `dim`."""
    parts = [function(direction) for direction in range(start.shape[0])]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
