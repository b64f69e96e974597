"""Which variant computes a convolution, with which tile and how many splits: one choice for each direction of each problem.

`choose` is a pure function of problem and device: it looks into a table of measurements, `choices.json`, and where that has
nothing it takes what the model (`model.py`) predicts to be fastest. Nothing is ever tried at call time.

A variant is an object of a class derived from `model.Variant`:

    name                                                as `Choice.variant` and `explain` call it
    refuses(direction, problem, device)                 why it does not take a problem, or None
    tiles(direction, problem)                           names of its tiles, "rows x columns" of the result, the largest first
    step(direction, problem, tile)                      depth per step
    rate(direction, problem, tile, device)              share of the device's rate of products that a tile reaches
    resident(direction, problem, tile)                  blocks that a multiprocessor holds at once
  and where the defaults do not fit
    persistent, last_resort                             whether blocks stay for many tiles; whether others are always preferred
    passes(direction, problem)                          packing: bytes moved, launches, workspace
    given(direction, problem)                           the problem with the channels it pads
    splits(direction, problem, tile, device)            the numbers of splits worth considering
    workspace_bytes(direction, problem, tile, splits)   what a call allocates

It is entered in VARIANTS, and its host functions in engines/compiled/conv2d.py.

The table maps a device's name and a problem's key to variant, tile, splits and microseconds; `python -m benchmarks choices`
makes it. An entry whose variant refuses the problem, or lacks the workspace for its splits, is passed over.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from ...hardware import Device
from ...shapes import SizeError
from . import variants
from .hopper import HOPPER
from .model import Choice, Prediction, Variant, share
from .model import predict as predict_of
from .portable import EXPLICIT, IMPLICIT, TENSOR
from .problem import Conv2dProblem, Four

__all__ = ["VARIANTS", "Choice", "Chosen", "Prediction", "candidates", "choose", "predict", "set_workspace_limit"]

TABLE = Path(__file__).with_name("choices.json")
#: By direction, the preferred first.
VARIANTS: dict[str, tuple[Variant, ...]] = dict.fromkeys(variants.DIRECTIONS, (HOPPER, TENSOR, IMPLICIT, EXPLICIT))
#: How many times faster than a preferred variant another one has to be predicted: the order is a prediction as well.
MARGIN = 1.25
#: How many times faster splits of fprop and dgrad have to be predicted than one: they cost the host a kernel and an allocation.
SPLIT_MARGIN = 1.1


class Chosen(NamedTuple):
    """A choice, what is expected of it, and what was passed over on the way to it with the reasons."""

    choice: Choice
    prediction: Prediction
    passed_over: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        of = self.prediction
        source = "measured" if of.measured else "predicted"
        return (
            f"{self.choice}: {source} {1e6 * of.seconds:.3g} µs, {of.share:.1%} of the dense rate, bound by {of.bound};"
            f" workspace {of.workspace_bytes} B"
        )


def candidates(direction: str, problem: Conv2dProblem, device: Device) -> list[Choice]:
    """Every choice that takes the problem: variants, their tiles, and the splits worth considering."""
    open_ = [variant for variant in VARIANTS[direction] if variant.refuses(direction, problem, device) is None]
    return [choice for variant in open_ for choice in _choices(variant, direction, problem, device)]


def _choices(variant: Variant, direction: str, problem: Conv2dProblem, device: Device) -> list[Choice]:
    return [
        Choice(variant.name, tile, splits)
        for tile in variant.tiles(direction, problem)
        for splits in variant.splits(direction, problem, tile, device)
    ]


def predict(choice: Choice, direction: str, problem: Conv2dProblem, device: Device) -> Prediction:
    """What `model.predict` says of a choice."""
    return predict_of(_variant(direction, choice.variant), choice, direction, problem, device)


def _variant(direction: str, name: str) -> Variant:
    for variant in VARIANTS[direction]:
        if variant.name == name:
            return variant
    raise ValueError(f"variant: expected one of {', '.join(each.name for each in VARIANTS[direction])}, got {name!r}")


# ---- the table -----------------------------------------------------------------------------------------------------------


def problem_key(direction: str, problem: Conv2dProblem) -> str | None:
    """What the table knows a problem by; None for one whose tensors are not dense in one of the two layouts, or not aligned."""
    C = problem.group_channels[0]
    layouts = [
        _layout(problem.x_strides, (problem.N, problem.C, problem.H, problem.W)),
        _layout(problem.w_strides, (problem.K, C, problem.R, problem.S)),
        _layout(problem.y_strides, (problem.N, problem.K, problem.P, problem.Q)),
    ]
    if None in layouts or not (problem.x_aligned and problem.w_aligned and problem.y_aligned):
        return None
    told = dict.fromkeys(each for each in layouts if each != "either") or {"channels_last": None}
    layout = next(iter(told)) if len(told) == 1 else "-".join(str(each) for each in layouts)
    extents = ",".join(f"{name}={getattr(problem, name)}" for name in ("N", "C", "H", "W", "K", "R", "S", "P", "Q"))
    pairs = ",".join(
        f"{name}={height}x{width}"
        for name, (height, width) in (("stride", problem.stride), ("pad", problem.pad), ("dilation", problem.dilation))
    )
    return f"{direction}/{problem.dtype}/{problem.precision}/{layout}/{extents},{pairs},groups={problem.groups}"


def _layout(strides: Four, size: Four) -> str | None:
    """nchw, channels_last, either where extents of 1 leave no difference, None where it is neither."""
    fits = []
    for name, order in (("nchw", (3, 2, 1, 0)), ("channels_last", (1, 3, 2, 0))):
        dense = 1
        for dim in order:
            if size[dim] > 1 and strides[dim] != dense:
                break
            dense *= size[dim]
        else:
            fits.append(name)
    return None if not fits else fits[0] if len(fits) == 1 else "either"


@cache
def measured() -> dict[str, dict[str, tuple[Choice, float]]]:
    """The table: device name -> problem key -> choice and seconds."""
    devices: dict[str, dict[str, list]] = json.loads(TABLE.read_text(encoding="utf-8"))["devices"]
    return {
        name: {key: (Choice(variant, tile, splits), 1e-6 * us) for key, (variant, tile, splits, us) in entries.items()}
        for name, entries in devices.items()
    }


def _why_not(choice: Choice, direction: str, problem: Conv2dProblem, variants_open: list[Variant]) -> str | None:
    """Why an entry of the table cannot be followed here."""
    variant = next((each for each in variants_open if each.name == choice.variant), None)
    if variant is None:
        return f"no variant {choice.variant} takes this problem"
    if choice.tile not in variant.tiles(direction, problem):
        return f"{choice.variant} has no tile {choice.tile} here"
    most = variant.most_splits(direction, problem, choice.tile)
    return None if choice.splits <= most else f"the workspace has room for {most} of {choice.splits} splits"


# ---- choosing ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def choose(direction: str, problem: Conv2dProblem, device: Device, forced: str | Choice | None = None) -> Chosen:
    """The choice for a problem.

    Args:
        forced: a variant's name, of whose choices the best is taken; or a choice, whose splits are cut down to what the depth
            and the workspace have room for.

    Raises:
        SizeError: the geometry is beyond 32 bits, or no variant takes the problem.
        RuntimeError: the forced variant does not take it.
    """
    problem.require_int32()
    name = forced.variant if isinstance(forced, Choice) else forced
    open_: list[Variant] = []
    refused: dict[str, str] = {}
    for variant in VARIANTS[direction]:
        reason = variant.refuses(direction, problem, device) if name in (None, variant.name) else f"{name} is asked for"
        if reason is None:
            open_.append(variant)
        else:
            refused[variant.name] = reason
    if not open_:
        reasons = "; ".join(f"{each}: {why}" for each, why in refused.items())
        raise (RuntimeError if forced else SizeError)(f"conv2d_{direction}: no variant takes {problem}: {reasons}")

    if isinstance(forced, Choice):
        (variant,) = open_
        if forced.tile not in variant.tiles(direction, problem):
            known = ", ".join(variant.tiles(direction, problem))
            raise RuntimeError(f"conv2d_{direction}: {name} has tiles {known} for {problem}, not {forced.tile}")
        splits = max(1, min(forced.splits, variant.most_splits(direction, problem, forced.tile)))
        choice = forced._replace(splits=splits)
        return Chosen(choice, predict(choice, direction, problem, device), tuple(refused.items()))

    passed_over: list[tuple[str, str]] = []
    key = problem_key(direction, problem) if device.name in measured() else None
    entry = measured()[device.name].get(key) if key is not None else None
    if entry is not None and name in (None, entry[0].variant):
        choice, seconds = entry
        reason = _why_not(choice, direction, problem, open_)
        if reason is None:
            prediction = predict(choice, direction, problem, device)
            prediction = prediction._replace(seconds=seconds, share=share(problem, device, seconds), measured=True)
            return Chosen(choice, prediction, _before(choice.variant, direction, refused, "was measured to be fastest"))
        passed_over.append((f"{choice} (measured)", reason))

    best: tuple[Choice, Prediction] | None = None
    for variant in [each for each in open_ if not each.last_resort] or open_:
        predictions = [
            (each, predict_of(variant, each, direction, problem, device))
            for each in _choices(variant, direction, problem, device)
        ]
        fastest = min(predictions, key=lambda each: each[1].seconds)
        if direction != "wgrad" and fastest[0].splits > 1:
            whole = min((each for each in predictions if each[0].splits == 1), key=lambda each: each[1].seconds)
            fastest = fastest if fastest[1].seconds * SPLIT_MARGIN < whole[1].seconds else whole
        if best is None or fastest[1].seconds * MARGIN < best[1].seconds:
            best = fastest
    assert best is not None
    choice, prediction = best
    beaten = _before(choice.variant, direction, refused, f"is predicted to be more than {MARGIN} times as fast")
    return Chosen(choice, prediction, (*passed_over, *beaten))


def _before(chosen: str, direction: str, refused: dict[str, str], why: str) -> tuple[tuple[str, str], ...]:
    """The variants that are preferred to the chosen one, with what spoke against each."""
    names = [variant.name for variant in VARIANTS[direction]]
    return tuple((name, refused.get(name, f"{chosen} {why}")) for name in names[: names.index(chosen)])


def set_workspace_limit(limit: int) -> int:
    """Sets `variants.workspace_limit` and returns what it was. Choices made under another limit are forgotten."""
    previous, variants.workspace_limit = variants.workspace_limit, limit
    choose.cache_clear()
    return previous
