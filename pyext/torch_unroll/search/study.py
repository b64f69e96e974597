"""Grid, random (Bergstra & Bengio 2012) and Hyperband (Li et al. 2016) search with Optuna; a file lets a later run continue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from torch_unroll.search.space import CHOICES, Candidate, train
from torch_unroll.training.digits import Digits

STRATEGIES = ("grid", "random", "hyperband")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("architecture search needs Optuna: pip install torch-unroll[search]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _candidate(trial: Any, strategy: str) -> Candidate:
    values = {name: trial.suggest_categorical(name, list(choices)) for name, choices in CHOICES.items() if name != "rate"}
    if strategy == "grid":
        values["rate"] = trial.suggest_categorical("rate", list(CHOICES["rate"]))
    else:
        values["rate"] = trial.suggest_float("rate", 1e-3, 0.3, log=True)
    return Candidate(**values)


def open_study(strategy: str, store: Path | None, epochs: int, seed: int = 0) -> Any:
    """Opens the study of a strategy: the one in the file `store` if there is one, else a new one.

    Raises:
        ValueError: the strategy is unknown.
        ImportError: Optuna is missing.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    optuna = _optuna()
    storage = None
    if store is not None:
        store.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(store)))
    # The number of trials in the store is added to the seed, so that a continued search does not draw the same candidates again.
    done = 0
    if storage is not None:
        names = {summary.study_name: summary for summary in optuna.study.get_all_study_summaries(storage)}
        done = names[strategy].n_trials if strategy in names else 0
    sampler = (
        optuna.samplers.GridSampler({name: list(choices) for name, choices in CHOICES.items()}, seed=seed)
        if strategy == "grid"
        else optuna.samplers.RandomSampler(seed=seed + done)
    )
    pruner = optuna.pruners.NopPruner()
    if strategy == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return optuna.create_study(
        study_name=strategy, storage=storage, sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
    )


def run(
    study: Any, strategy: str, digits: Digits, trials: int, epochs: int, report: Callable[[], None] = lambda: None, seed: int = 0
) -> None:
    """Runs trials until the study has `trials` finished ones, or the grid is exhausted; calls `report` after each."""
    optuna = _optuna()

    def objective(trial: Any) -> float:
        candidate, best = _candidate(trial, strategy), 0.0
        for epoch, accuracy in enumerate(train(candidate, digits, epochs, seed)):
            best = max(best, accuracy)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    total = min(trials, prod(len(choices) for choices in CHOICES.values())) if strategy == "grid" else trials
    missing = total - sum(trial.state.is_finished() for trial in study.trials)
    if missing > 0:
        study.optimize(objective, n_trials=missing, callbacks=[lambda *_: report()])


def table(study: Any, most: int = 10) -> str:
    """A table of the best trials."""
    names = [field.name for field in fields(Candidate)]
    finished = [trial for trial in study.trials if trial.value is not None]
    finished.sort(key=lambda trial: -trial.value)
    rows = [["accuracy", *names]]
    for trial in finished[:most]:
        values = (trial.params[name] for name in names)
        rows.append([f"{trial.value:.1%}", *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
