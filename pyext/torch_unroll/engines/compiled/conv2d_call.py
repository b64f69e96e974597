"""One convolution on tensors: its problem, and how its batch is cut into chunks, one for each launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.conv2d_workspace import workspace_limit
from torch_unroll.engines.interface import Conv2dGeometry
from torch_unroll.kernels.cuda.conv2d.problem import Conv2dProblem, problem_of_sizes
from torch_unroll.kernels.hardware import Device
from torch_unroll.kernels.shapes import Four
from torch_unroll.shapes import dtype_name


def problem_of(direction: str, x: Tensor, w: Tensor, y: Tensor, geometry: Conv2dGeometry, precision: str) -> Conv2dProblem:
    """Returns a convolution of tensors as plans see it; a gradient is passed in place of the tensor whose size it has."""
    stride, padding, dilation, groups = geometry
    return problem_of_sizes(
        x.shape,
        w.shape,
        y.shape,
        stride,
        (padding[0], padding[2]),
        dilation,
        dtype=dtype_name(x.dtype),
        groups=groups,
        x_strides=four(x.stride()),
        w_strides=four(w.stride()),
        y_strides=four(y.stride()),
        direction=direction,
        precision=precision,
        x_aligned=x.data_ptr() % 16 == 0,
        w_aligned=w.data_ptr() % 16 == 0,
        y_aligned=y.data_ptr() % 16 == 0,
        workspace_limit=workspace_limit(),
    )


def four(numbers: Sequence[int]) -> Four:
    """Returns the extents or strides of a tensor of four dimensions."""
    return numbers[0], numbers[1], numbers[2], numbers[3]


@dataclass(frozen=True, eq=False)
class Call:
    """One direction of one convolution on tensors. `x`, `w` or `y` holds a gradient if the direction reads or writes it."""

    launcher: Launcher
    direction: str
    x: Tensor
    w: Tensor
    y: Tensor
    geometry: Conv2dGeometry
    precision: str

    @cached_property
    def problem(self) -> Conv2dProblem:
        """The convolution as plans see it."""
        return problem_of(self.direction, self.x, self.w, self.y, self.geometry, self.precision)

    @cached_property
    def device(self) -> Device:
        """The GPU as plans see it."""
        return self.launcher.properties(self.x.device)

    def chunks(self, bytes_per_image: int = 0) -> list[Call]:
        """Cuts the batch into chunks and returns a call for each. A chunk has at least one image, and no more than one launch can
        count or half of the workspace can hold.

        Args:
            bytes_per_image: how many bytes of workspace one image needs.
        """
        images = self.problem.images_per_launch(bytes_per_image)
        if images == self.x.shape[0]:
            return [self]
        return [self.on(x, self.w, y) for x, y in zip(self.x.split(images), self.y.split(images), strict=True)]

    def on(self, x: Tensor, w: Tensor, y: Tensor) -> Call:
        """Returns the same call on other tensors; if these are its own tensors, the call itself, with its cached problem."""
        if x is self.x and w is self.w and y is self.y:
            return self
        return replace(self, x=x, w=w, y=y)

    def pointwise(self, x: Tensor, w: Tensor, y: Tensor) -> Call:
        """Returns a 1×1 convolution on other tensors with the same groups."""
        return replace(self, x=x, w=w, y=y, geometry=Conv2dGeometry((1, 1), (0, 0, 0, 0), (1, 1), self.problem.groups))
