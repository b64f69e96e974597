"""What the variants on tensor cores have in common: which problems they accept, and what is packed for them."""

from __future__ import annotations

from ...arithmetic import ceil_divide
from ...dtypes import ITEM_BYTES
from ...hardware import Device
from ...shapes import Four
from .access import whole_pieces
from .cost import Conv2dVariant, Passes
from .pack_channels import padded, piece
from .problem import Conv2dProblem


class TensorCoreVariant(Conv2dVariant):
    """Accepts fp16, bf16 and TF32, except grouped convolutions with fewer than 4 input or output channels per group.

    Tensors whose channels do not fill whole pieces of 16 bytes are packed first.
    """

    def refuses(self, problem: Conv2dProblem, device: Device) -> str | None:
        if problem.dtype == "float64":
            return "tensor cores multiply fp16, bf16 and TF32, not float64"
        if problem.dtype == "float32" and problem.precision != "tf32":
            return "float32 products are to be IEEE: torch.backends.cudnn.conv.fp32_precision = 'tf32' allows tensor cores"
        C, K = problem.group_channels
        if problem.groups > 1 and min(C, K) < 4:
            return f"groups of {C} and {K} channels would leave tensor cores multiplying padding"
        return problem.limits() or problem.beyond_positions()

    def product_problem(self, problem: Conv2dProblem) -> Conv2dProblem:
        """Pads channels to whole pieces: C in fprop and K in dgrad, which are summed over; both in wgrad."""
        C, K = (padded(channels, problem.dtype) * problem.groups for channels in problem.group_channels)
        return problem._replace(
            C=problem.C if problem.direction == "dgrad" else C, K=problem.K if problem.direction == "fprop" else K
        )

    def passes(self, problem: Conv2dProblem) -> Passes:
        """Counts the packing of image tensors, done for as many images at a time as fit the workspace, and of the filter."""
        item, groups, direction = ITEM_BYTES[problem.dtype], problem.groups, problem.direction
        x_size, y_size = (problem.N, problem.C, problem.H, problem.W), (problem.N, problem.K, problem.P, problem.Q)
        bytes_per_image = moved_bytes = tensors = 0
        for is_read, strides, size, aligned in (
            (direction != "dgrad", problem.x_strides, x_size, problem.x_aligned),
            (direction != "fprop", problem.y_strides, y_size, problem.y_aligned),
        ):
            if is_read and not whole_pieces(strides, size, aligned, groups, piece(problem.dtype)):
                plane_bytes = size[2] * size[3] * item
                packed_bytes = groups * padded(size[1] // groups, problem.dtype) * plane_bytes
                bytes_per_image += packed_bytes
                moved_bytes += problem.N * (packed_bytes + size[1] * plane_bytes)
                tensors += 1
        images = problem.images_per_launch(bytes_per_image) if bytes_per_image else problem.N
        chunks = ceil_divide(problem.N, images)
        workspace_bytes, launches = images * bytes_per_image, tensors * chunks + chunks - 1
        if filter_bytes := self.packed_filter_bytes(problem):
            workspace_bytes += filter_bytes
            moved_bytes += filter_bytes + problem.K * problem.taps * item
            launches += 1
        return Passes(moved_bytes=moved_bytes, launches=launches, workspace_bytes=workspace_bytes, chunks=chunks)

    def packed_filter_bytes(self, problem: Conv2dProblem) -> int:
        """Returns the bytes of the filter's packed copy; 0 if the filter is not packed."""
        C, K = problem.group_channels
        size: Four = (problem.K, C, problem.R, problem.S)
        outputs_whole = problem.direction == "fprop" or padded(K, problem.dtype) == K
        is_packed = whole_pieces(problem.w_strides, size, problem.w_aligned, 1, piece(problem.dtype))
        if problem.direction == "wgrad" or (outputs_whole and is_packed):
            return 0
        outputs = problem.K if problem.direction == "fprop" else problem.groups * padded(K, problem.dtype)
        return outputs * padded(C, problem.dtype) * problem.R * problem.S * ITEM_BYTES[problem.dtype]
