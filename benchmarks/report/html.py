"""The HTML page of a report: one self-contained file with a sortable, filterable table, readable on a phone too."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report.figures import figures
from benchmarks.report.tables import RULES, conditions
from benchmarks.results import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).parent / "page.html"


def warning(document: Document) -> str:
    """What limits the meaning of the figures; empty if nothing does."""
    parts = []
    if document["environment"]["device_type"] != "cuda":
        parts.append("No GPU: these are timings of plain torch on a CPU. Emulated and simulated engines were checked, not timed.")
    if not document["complete"]:
        parts.append("The run was interrupted; only finished cases are shown.")
    if document["left_out"]:
        parts.append(f"{len(document['left_out'])} cases did not fit into the budget of the run.")
    return " ".join(parts)


def _image(name: str, figure: Figure) -> str:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/svg+xml;base64,{encoded}">'


def page(document: Document, plots: Mapping[str, Figure]) -> str:
    """The HTML source of the page."""
    rows = [
        {
            **{name: entry.row[name] for name in ("case", "op", "direction", "dtype", "layout", "labels")},
            "shape": entry.shape,
            "provider": entry.provider,
            "status": entry.status,
            "message": entry.message,
            "us": entry.microseconds,
            "q1": entry.q1,
            "q3": entry.q3,
            "tflops": entry.tflops,
            "gb_s": entry.gb_s,
            "share": entry.share,
            "peak_mb": None if entry.peak_bytes is None else entry.peak_bytes / 1e6,
            **{baseline: ratio["median"] for baseline, ratio in entry.ratios.items()},
        }
        for entry in figures(document)
    ]
    data = {"conditions": conditions(document), "rules": RULES.replace("\n", " "), "warning": warning(document), "rows": rows}
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    images = "\n".join(_image(name, figure) for name, figure in plots.items())
    return TEMPLATE.read_text().replace("<!--PLOTS-->", images).replace("<!--DATA-->", text)
