"""Ten crops, and the shift of RGB intensities along principal components."""

from __future__ import annotations

import pytest
import torch

from torch_unroll.models.augmentation import RgbIntensity, ten_crop_prediction, ten_crops


def test_ten_crops_are_corners_centre_and_mirrors() -> None:
    image = torch.arange(42.0).view(1, 1, 6, 7)
    crops = ten_crops(image, 4)
    assert crops.shape == (10, 1, 1, 4, 4)
    assert [int(crop[0, 0, 0, 0]) for crop in crops[:5]] == [0, 3, 14, 17, 8]
    assert torch.equal(crops[5:], crops[:5].flip(-1))


def test_prediction_averages_over_the_crops() -> None:
    images = torch.rand(2, 3, 6, 6)

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :5] * 3

    one_by_one = torch.stack([model(crop).softmax(1) for crop in ten_crops(images, 4)]).mean(0)
    torch.testing.assert_close(ten_crop_prediction(model, images, 4), one_by_one)


def test_intensity_moves_images_along_the_principal_components() -> None:
    direction = torch.tensor([3.0, 2.0, 1.0]) / 14**0.5
    images = torch.randn(50, 1, 8, 8) * 5 * direction.view(1, 3, 1, 1) + torch.randn(50, 3, 8, 8) * 0.01
    intensity = RgbIntensity.from_images(images)
    shift = intensity(images) - images
    assert torch.equal(shift, shift[:, :, :1, :1].expand_as(shift)) or (shift - shift[:, :, :1, :1]).abs().max() < 1e-5
    shifts = shift[:, :, 0, 0]
    along = shifts @ direction
    assert (shifts - along[:, None] * direction).norm() < 0.01 * shifts.norm()
    assert 0.3 < along.std() < 0.7  # expected: a tenth of the images' standard deviation in this direction, which is 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ten_crops(torch.ones(1, 3, 5, 6), 6), "size: expected at most 5"),
        (lambda: RgbIntensity.from_images(torch.ones(4, 1, 5, 5)), r"images: expected \(N, 3, H, W\), got \(4, 1, 5, 5\)"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
