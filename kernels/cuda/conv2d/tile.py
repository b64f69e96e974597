"""What the tiles of all variants have in common."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TypeVar

AnyTile = TypeVar("AnyTile", bound="Tile")


@dataclass(frozen=True)
class Tile:
    """The part of the result that a block computes at a time. A derived class mirrors the struct template of its name in C++."""

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """The tile's name in configurations, such as "128x64"."""
        return f"{self.rows}x{self.columns}"

    @property
    def cpp(self) -> str:
        """The tile as a C++ template argument."""
        return f"{type(self).__name__}<{', '.join(map(str, astuple(self)))}>"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds at once."""
        raise NotImplementedError

    def step(self, dtype: str) -> int:
        """Returns how much of the depth a block multiplies at a time; a split begins at a multiple of it."""
        raise NotImplementedError

    def shared_bytes(self, dtype: str) -> int:
        """Returns the bytes of shared memory that a block needs."""
        raise NotImplementedError


def named(*tiles: AnyTile) -> dict[str, AnyTile]:
    """Returns tiles by their names."""
    return {tile.name: tile for tile in tiles}
