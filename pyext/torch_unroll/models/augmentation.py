"""AlexNet's augmentation (Krizhevsky, Sutskever & Hinton 2012, §4.1): averaging over ten crops, and shifting RGB intensities
along their principal components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def ten_crops(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (10, N, C, size, size): crops at the corners and the centre, and their mirror images.

    Raises:
        ValueError: the images are smaller than `size`.
    """
    H, W = images.shape[-2:]
    if min(H, W) < size:
        raise ValueError(f"size: expected at most {min(H, W)}, the images' smaller side, got {size}")
    centre = ((H - size) // 2, (W - size) // 2)
    origins = [(0, 0), (0, W - size), (H - size, 0), (H - size, W - size), centre]
    crops = torch.stack([images[..., top : top + size, left : left + size] for top, left in origins])
    return torch.cat([crops, crops.flip(-1)])


def ten_crop_prediction(model: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) -> (N, classes): the mean of the model's softmax over the ten crops."""
    crops = ten_crops(images, size)
    return model(crops.flatten(0, 1)).softmax(1).unflatten(0, crops.shape[:2]).mean(0)


@dataclass
class RgbIntensity:
    """Adds random multiples of the principal components of RGB to each image, in proportion to the roots of their eigenvalues.

    `components` (3, 3) has the components of the training set's pixels as columns, and `deviations` (3) the roots of the
    eigenvalues.
    """

    components: Tensor
    deviations: Tensor
    strength: float = 0.1

    @classmethod
    def from_images(cls, images: Tensor, strength: float = 0.1) -> RgbIntensity:
        """Computes the components of training images (N, 3, H, W); raises ValueError for images of another shape."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected (N, 3, H, W), got {tuple(images.shape)}")
        pixels = images.transpose(0, 1).flatten(1).double()
        values, components = torch.linalg.eigh(torch.cov(pixels))
        return cls(components.to(images.dtype), values.clamp(min=0).sqrt().to(images.dtype), strength)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, 3, H, W) -> the shifted images; draws three normal numbers for each image."""
        draws = (
            torch.randn(len(images), 3, generator=generator, dtype=images.dtype, device="cpu").to(images.device) * self.strength
        )
        shift = (draws * self.deviations.to(images.device)) @ self.components.to(images.device).T
        return images + shift[:, :, None, None]
