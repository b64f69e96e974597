"""Selects, for every op alike, which variant of its kernels computes a call and how the work is divided among blocks.

A *variant*, such as `wgmma`, is one way to compute a function, such as `conv2d_dgrad`. It is an object of a class derived from
`Variant`, in `kernels/cuda/<op>/<variant>.py` next to the kernel file. A *configuration* names a variant, its tile and the
number of splits. A `Selector` holds the variants of one function, in the order of preference, and selects:

1. what is forced (`force`), for tests and measurements;
2. else what was measured to be fastest on this GPU, if the op's `choices.json` has an entry that can be used here;
3. else what is predicted to be fastest. A variant is preferred to the ones after it unless one of those is predicted to be more
   than `margin` times as fast.

A selection depends on the problem, the device and what is forced, but not on data, and nothing is timed during a call.
`explain`, the tests and the benchmarks all read the same result, `Selected`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from . import SOURCES, changes
from .hardware import Device
from .shapes import SizeError
from .table import OPS, LaunchPlan

Problem = TypeVar("Problem")  # what a function is asked to compute: extents, strides, dtype; hashable


class Configuration(NamedTuple):
    """How a problem is computed."""

    variant: str
    tile: str = ""  # what a block computes, as the variant names it, e.g. "128x128"; empty if there is no choice
    splits: int = 1  # how many blocks share a tile; in `split` of max pooling, how many threads share a window

    def __str__(self) -> str:
        return " ".join(filter(None, (self.variant, self.tile))) + (f", {self.splits} splits" if self.splits > 1 else "")


class Prediction(NamedTuple):
    """The time and memory that a configuration is expected to take on a device."""

    seconds: float
    bound: str  # what takes most of the time, e.g. "products", "bytes" or "launches"
    share: float = 0.0  # how much of the rate that `share_of` names is reached, 0 to 1
    share_of: str = "the dense rate"
    workspace_bytes: int = 0
    measured: bool = False  # whether the seconds come from the table of measurements

    def __str__(self) -> str:
        source, share = (
            "measured" if self.measured else "predicted",
            f", {self.share:.1%} of {self.share_of}" if self.share else "",
        )
        return f"{source} {1e6 * self.seconds:.3g} µs{share}, bound by {self.bound}; workspace {self.workspace_bytes} B"


class Variant(Generic[Problem]):
    """One way to compute a function of the kernels."""

    #: The name that `Configuration.variant`, `explain` and the op's page use; also the stem of the variant's files.
    name: str
    #: Whether prediction selects the variant only if no other accepts the problem. It can be forced or measured regardless.
    last_resort = False
    #: Whether blocks wait for each other and so must be resident at the same time. `plan` then returns a `LaunchPlan`.
    blocks_wait = False

    def refuses(self, problem: Problem, device: Device) -> str | None:
        """Returns why the variant does not accept the problem, or None if it does. Selections use it, and `explain` prints it."""
        raise NotImplementedError

    def tiles(self, problem: Problem, device: Device) -> Sequence[str]:
        """Returns the names of the variant's tiles for a problem that it accepts, the preferred first."""
        return ("",)

    def splits(self, problem: Problem, tile: str, device: Device) -> Sequence[int]:
        """Returns the numbers of splits worth considering, ascending."""
        return (1,)

    def most_splits(self, problem: Problem, tile: str, device: Device) -> int:
        """Returns the most splits that the problem and the workspace have room for, at least 1."""
        return max(self.splits(problem, tile, device))

    def configurations(self, problem: Problem, device: Device) -> list[Configuration]:
        """Returns the configurations worth considering for a problem that it accepts."""
        return [
            Configuration(self.name, tile, splits)
            for tile in self.tiles(problem, device)
            for splits in self.splits(problem, tile, device)
        ]

    def plan(self, problem: Problem, configuration: Configuration, device: Device) -> Any:
        """Returns how a configuration is launched: a `LaunchPlan`, or an object of the op that holds one as `launch`."""
        raise NotImplementedError

    def predict(self, problem: Problem, configuration: Configuration, device: Device) -> Prediction:
        """Returns a configuration's expected time and memory; a selection depends only on the ratios of the times."""
        raise NotImplementedError

    def handicap(self, problem: Problem, configuration: Configuration) -> float:
        """Returns the factor on a configuration's predicted time when the variant's configurations are compared."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Selected(Generic[Problem]):
    """The variant and configuration selected for a problem, the expected time and memory, and why others were passed over."""

    function: str
    problem: Problem
    device: Device
    variant: Variant[Problem]
    configuration: Configuration
    prediction: Prediction
    #: (variant, reason): variants that refuse the problem, do not fit on the device or are not the forced one, and variants
    #: earlier in the order of preference that are slower; also (configuration, reason) if a measured one cannot be used here.
    passed_over: tuple[tuple[str, str], ...]

    @property
    def plan(self) -> Any:
        """What `Variant.plan` returns for the configuration."""
        return self.variant.plan(self.problem, self.configuration, self.device)

    def __str__(self) -> str:
        return f"{self.configuration}: {self.prediction}"


# ---- forcing ---------------------------------------------------------------------------------------------------------------

_forced: dict[str, str | Configuration | None] = {}  # op or function -> what is forced
_selectors: dict[str, Selector[Any]] = {}  # function -> its selector


@contextmanager
def force(name: str, forced: str | Configuration | None) -> Iterator[None]:
    """Makes one variant or configuration compute every call of an op or function in this process while the context is active.

    A call that the variant does not accept raises RuntimeError.

    Args:
        name: an op, such as "conv2d", or one function of it, such as "conv2d_dgrad". Functions of an op that do not have the
            variant select as usual.
        forced: the name of a variant, which leaves the choice among its configurations; or a configuration, whose splits are
            reduced if there is no room for all of them; or None, which forces nothing.

    Raises:
        ValueError: there is no such op or function, or it has no such variant.
    """
    _require_known(name, forced)
    previous, _forced[name] = _forced.get(name), forced
    changes.note()
    try:
        yield
    finally:
        _forced[name] = previous
        changes.note()


def _require_known(name: str, forced: str | Configuration | None) -> None:
    for op in OPS:
        selectors(op)  # a selector registers itself when it is made
    known = [selector for selector in _selectors.values() if name in (selector.op, selector.function)]
    names = dict.fromkeys(part for selector in _selectors.values() for part in (selector.op, selector.function))
    if name not in names:
        raise ValueError(f"name: expected one of {', '.join(names)}, got {name!r}")
    variants = dict.fromkeys(variant for selector in known for variant in selector.by_name)
    variant = forced.variant if isinstance(forced, Configuration) else forced
    if variant is not None and variant not in variants:
        raise ValueError(f"variant of {name}: expected one of {', '.join(variants)}, got {variant!r}")


# ---- measurements ----------------------------------------------------------------------------------------------------------


def table_path(op: str) -> Path:
    """Returns the file that holds an op's measurements."""
    return SOURCES / op / "choices.json"


@cache
def measured(op: str) -> dict[str, dict[str, tuple[Configuration, float]]]:
    """Returns an op's measurements: name of a device -> key of a problem -> the fastest configuration and its seconds."""
    path = table_path(op)
    devices: dict[str, dict[str, list]] = json.loads(path.read_text(encoding="utf-8"))["devices"] if path.exists() else {}
    return {
        name: {key: (Configuration(variant, tile, splits), 1e-6 * us) for key, (variant, tile, splits, us) in entries.items()}
        for name, entries in devices.items()
    }


# ---- selection -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Selector(Generic[Problem]):
    """Selects the variant of one function."""

    op: str
    function: str  # as engines call it, e.g. "conv2d_dgrad"
    variants: tuple[Variant[Problem], ...]  # the preferred first
    #: A variant is selected before a preferred one only if it is predicted to be more than this many times as fast.
    margin: float = 1.0
    by_name: dict[str, Variant[Problem]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {variant.name: variant for variant in self.variants})
        _selectors[self.function] = self

    def key(self, problem: Problem) -> str | None:
        """Returns the key of a problem in the table of measurements; None for a problem that the table cannot hold."""
        text: str | None = getattr(problem, "key", None)
        return None if text is None else f"{self.function}/{text}"

    def select(self, problem: Problem, device: Device) -> Selected[Problem]:
        """Returns the selection for a problem.

        Raises:
            SizeError: no variant accepts the problem and fits on the device.
            RuntimeError: the forced variant does not accept the problem, does not fit on the device, or lacks the forced tile.
        """
        return _select(self, problem, device, self._forced() if _forced else None)

    def _forced(self) -> str | Configuration | None:
        if forced := _forced.get(self.function):
            return forced
        forced = _forced.get(self.op)
        return forced if (forced.variant if isinstance(forced, Configuration) else forced) in self.by_name else None

    def configurations(self, problem: Problem, device: Device) -> list[Configuration]:
        """Returns the configurations that are worth measuring, of every variant that accepts the problem."""
        willing = [variant for variant in self.variants if variant.refuses(problem, device) is None]
        return [configuration for variant in willing for configuration in variant.configurations(problem, device)]

    def predict(self, problem: Problem, configuration: Configuration, device: Device) -> Prediction:
        """Returns a configuration's expected time and memory; raises ValueError if there is no such variant."""
        return self.variant(configuration.variant).predict(problem, configuration, device)

    def variant(self, name: str) -> Variant[Problem]:
        """Returns the variant with this name; raises ValueError if there is none."""
        if name not in self.by_name:
            raise ValueError(f"variant of {self.function}: expected one of {', '.join(self.by_name)}, got {name!r}")
        return self.by_name[name]


@lru_cache(maxsize=4096)
def _select(
    selector: Selector[Problem], problem: Problem, device: Device, forced: str | Configuration | None
) -> Selected[Problem]:
    if isinstance(forced, Configuration):
        return _Selection(selector, problem, device, forced.variant).force(forced)
    return (selection := _Selection(selector, problem, device, forced)).measured() or selection.predicted()


class _Selection(Generic[Problem]):
    """The selection for one problem: which variants accept it, and why the others do not.

    Args:
        forced: the name of the only variant that is allowed, or None.
    """

    def __init__(self, selector: Selector[Problem], problem: Problem, device: Device, forced: str | None):
        self.selector, self.problem, self.device, self.forced = selector, problem, device, forced
        self.refused: dict[str, str] = {}
        self.notes: list[tuple[str, str]] = []
        for variant in selector.variants:
            reason = variant.refuses(problem, device) if forced in (None, variant.name) else f"{forced} is asked for"
            if reason is not None:
                self.refused[variant.name] = reason
        self.willing = [variant for variant in selector.variants if variant.name not in self.refused]
        if not self.willing:
            raise self.error()

    def error(self) -> RuntimeError:
        """Returns the exception to raise when no variant is left."""
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items() if self.forced in (None, name))
        kind = SizeError if self.forced is None else RuntimeError
        return kind(f"{self.selector.function}: no variant takes {self.problem}: {reasons}")

    def force(self, forced: Configuration) -> Selected[Problem]:
        """Selects the forced configuration, with fewer splits if there is no room for all of them."""
        (variant,) = self.willing
        tiles = variant.tiles(self.problem, self.device)
        if forced.tile not in tiles:
            known = f"tiles {', '.join(tiles)}" if any(tiles) else "no tiles"
            raise RuntimeError(f"{self.selector.function}: {variant.name} has {known} for {self.problem}, not {forced.tile!r}")
        splits = max(1, min(forced.splits, variant.most_splits(self.problem, forced.tile, self.device)))
        configuration = forced._replace(splits=splits)
        if reason := self.does_not_fit(variant, configuration):
            self.refused[variant.name] = reason
            raise self.error()
        return self.selected(variant, configuration, variant.predict(self.problem, configuration, self.device), "is asked for")

    def measured(self) -> Selected[Problem] | None:
        """Selects the measured configuration; None if there is none, it cannot be used, or another variant is forced."""
        entries = measured(self.selector.op).get(self.device.name, {})
        key = self.selector.key(self.problem) if entries else None
        if key is None or key not in entries:
            return None
        configuration, seconds = entries[key]
        if self.forced not in (None, configuration.variant):
            return None
        if reason := self.cannot_follow(configuration):
            self.notes.append((f"{configuration} (measured)", reason))
            return None
        variant = self.selector.variant(configuration.variant)
        predicted = variant.predict(self.problem, configuration, self.device)
        share = predicted.share * predicted.seconds / seconds
        prediction = predicted._replace(seconds=seconds, share=share, measured=True)
        return self.selected(variant, configuration, prediction, "was measured to be fastest")

    def cannot_follow(self, configuration: Configuration) -> str | None:
        """Returns why a measured configuration cannot be used here, or None if it can."""
        variant = next((variant for variant in self.willing if variant.name == configuration.variant), None)
        if variant is None:
            return f"{configuration.variant} does not take this problem"
        if configuration.tile not in variant.tiles(self.problem, self.device):
            return f"{variant.name} has no tile {configuration.tile} here"
        most = variant.most_splits(self.problem, configuration.tile, self.device)
        if configuration.splits > most:
            return f"the workspace has room for {most} of {configuration.splits} splits"
        return self.does_not_fit(variant, configuration)

    def predicted(self) -> Selected[Problem]:
        """Selects by predicted times and the margin, among the variants whose blocks fit on the device."""
        margin = self.selector.margin
        left = [variant for variant in self.willing if not variant.last_resort] or self.willing
        fastest = {variant.name: self.fastest(variant) for variant in left}
        while left:
            best = left[0]
            for variant in left[1:]:
                if fastest[variant.name][1].seconds * margin < fastest[best.name][1].seconds:
                    best = variant
            configuration, prediction = fastest[best.name]
            if (reason := self.does_not_fit(best, configuration)) is None:
                ratio = f"more than {margin} times as fast" if margin > 1 else "faster"
                return self.selected(best, configuration, prediction, f"is predicted to be {ratio}")
            self.refused[best.name] = reason
            left.remove(best)
        raise self.error()

    def fastest(self, variant: Variant[Problem]) -> tuple[Configuration, Prediction]:
        """Returns the configuration with the least product of predicted time and handicap, and its prediction."""
        predictions = [
            (configuration, variant.predict(self.problem, configuration, self.device))
            for configuration in variant.configurations(self.problem, self.device)
        ]
        return min(predictions, key=lambda pair: pair[1].seconds * variant.handicap(self.problem, pair[0]))

    def does_not_fit(self, variant: Variant[Problem], configuration: Configuration) -> str | None:
        """Returns why blocks that wait for each other cannot be resident together; None if they can, or if no blocks wait.

        The blocks of a cooperative launch wait for the whole grid, those of a cluster for their cluster.
        """
        if not variant.blocks_wait:
            return None
        plan: LaunchPlan = variant.plan(self.problem, configuration, self.device)
        x, y, z = plan.config.grid
        needed = x * y * z if plan.config.cooperative else 1
        if self.device.resident(plan) >= needed:
            return None
        return f"its {plan.config.grid} blocks do not fit on {self.device.name or 'the device'} together"

    def selected(
        self, variant: Variant[Problem], configuration: Configuration, prediction: Prediction, why: str
    ) -> Selected[Problem]:
        """Returns the selection, with the reasons against variants that were refused or precede the selected one."""
        passed_over, preferred = list(self.notes), True
        for other in self.selector.variants:
            preferred = preferred and other is not variant
            if other.name in self.refused:
                passed_over.append((other.name, self.refused[other.name]))
            elif preferred:
                passed_over.append((other.name, f"{variant.name} {why}"))
        return Selected(
            function=self.selector.function,
            problem=self.problem,
            device=self.device,
            variant=variant,
            configuration=configuration,
            prediction=prediction,
            passed_over=tuple(passed_over),
        )


def forget() -> None:
    """Forgets every selection and measurement, for a test that changes what selections depend on."""
    _select.cache_clear()
    measured.cache_clear()
    changes.note()


def selectors(op: str) -> dict[str, Selector[Any]]:
    """Returns the selectors of an op by function, from `SELECTORS` in its `variants.py`."""
    return import_module(f"{__package__}.cuda.{op}.variants").SELECTORS
