"""Pictures in one folder for each class: root/cat/1.png, root/dog/2.jpg, ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


class ImageFolder:
    """The pictures in a folder and their classes, sorted by name.

    Args:
        root: a folder that contains one folder for each class.
        size: the (H, W) to which each picture is resized.
        channels: 1 for grey, or 3 for RGB.

    Raises:
        FileNotFoundError: the folder does not exist, or contains no class.
        ValueError: a class contains no pictures.
    """

    def __init__(self, root: Path, size: tuple[int, int], channels: int = 3):
        if not root.is_dir():
            raise FileNotFoundError(f"data: expected a folder with a folder for each class, got {root}, which is not there")
        self.root, self.size, self.channels = root, size, channels
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        if not self.classes:
            raise FileNotFoundError(f"data: expected a folder for each class in {root}, found none")
        self.files: list[tuple[Path, int]] = []
        for number, name in enumerate(self.classes):
            pictures = sorted(path for path in (root / name).iterdir() if path.suffix.lower() in _SUFFIXES)
            if not pictures:
                raise ValueError(f"data: expected pictures ({', '.join(_SUFFIXES)}) in {root / name}, found none")
            self.files += [(path, number) for path in pictures]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loads pictures (len(rows), channels, H, W) in [0, 1], and their classes. Raises ValueError for a corrupt picture."""
        from PIL import Image

        pictures = []
        for row in rows:
            path = self.files[row][0]
            try:
                with Image.open(path) as image:
                    small = image.convert("L" if self.channels == 1 else "RGB").resize((self.size[1], self.size[0]))
            except (OSError, SyntaxError) as error:
                raise ValueError(f"data: expected a picture, got {path}, which does not open: {error}") from error
            pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.view(*self.size, self.channels).permute(2, 0, 1).float() / 255)
        return torch.stack(pictures), torch.tensor([self.files[row][1] for row in rows])
