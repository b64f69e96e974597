"""Copies a run on a GPU into the repository: results, golden data, and the fastest configurations."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.environment import REPOSITORY
from benchmarks.first_light import programs
from benchmarks.first_light.programs import Measurement, Outcome
from benchmarks.gpu.store import Record, Store, load_run
from benchmarks.tuning import table

RESULTS = REPOSITORY / "benchmarks" / "results"
GOLDEN = REPOSITORY / "tests" / "emulator" / "golden"


def keep(folder: Path, into: Path = RESULTS, golden: Path = GOLDEN) -> str:
    """Copies a run into the repository and returns what was written, in a line for each file.

    Raises:
        ValueError: the folder holds no run, a run on the emulator, or a run of another version.
    """
    if not (folder / "run.json").exists():
        raise ValueError(f"{folder}: expected the folder of a run, with run.json in it")
    run = load_run(folder)
    if run["environment"]["device_type"] != "cuda":
        raise ValueError(f"{folder}: only runs on a GPU are kept, and this run is the emulator's")
    store = Store(folder, run["environment"])
    target = into / re.sub(r"[^a-z0-9]+", "-", run["environment"]["device"].lower()).strip("-")
    target.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in ("run.json", "checks.jsonl", "second.jsonl"):
        if (folder / name).exists():
            shutil.copy(folder / name, target / name)
            lines.append(f"{target / name}")
    lines += _keep_hardware(store, target, golden)
    if rows := [record for record in store.lines["timings.jsonl"] if "row" in record and record["outcome"] == "right"]:
        results.save(document(store, rows), target / "benchmarks.json")
        lines.append(f"{target / 'benchmarks.json'}: {len(rows)} cases; python -m benchmarks report --readme")
        lines.append(table.write(choices_document(store, rows)))
    return "\n".join(lines)


def document(store: Store, records: list[Record]) -> results.Document:
    """The timings as the content of a result file, from which reports are made."""
    result = results.new(store.run["environment"], "python -m benchmarks gpu", store.run["environment"]["seed"])
    result.update(
        ceilings=store.done("timings.jsonl").get("ceilings", {}).get("ceilings", {}),
        rows=[record["row"] for record in records],
        complete=store.run.get("complete", False),
    )
    return result


def choices_document(store: Store, records: list[Record]) -> dict[str, Any]:
    """The timings of tiles in the form that `benchmarks choices` writes, with the fields that `table.write` reads."""
    problems = {record["job"]: record["tiles"] for record in records if record.get("tiles")}
    return {"environment": store.run["environment"], "problems": problems}


def _keep_hardware(store: Store, target: Path, golden: Path) -> list[str]:
    records = store.lines["hardware.jsonl"]
    if not records:
        return []
    outcomes = [Outcome(Measurement(*record["job"].split(" ", 1)), record["records"]) for record in records]
    measured, _ = programs.split(outcomes)
    # The records of a failed measurement may be incomplete, and must not replace golden data.
    whole = [outcome for outcome, record in zip(outcomes, records, strict=True) if not record["detail"]]
    _, recorded = programs.split(whole)
    failures = {record["job"]: record["detail"] for record in records if record["detail"]}
    path = target / "first_light.json"
    first_light = {"environment": store.run["environment"], "measurements": measured, "failures": failures}
    path.write_text(json.dumps(first_light, indent=1) + "\n")
    return [str(path), *map(str, programs.write_golden(golden, recorded))]
