"""The page: one file without anything from elsewhere, sortable, filterable, and as readable on a phone."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.report.figures import figures
from benchmarks.report.tables import RULES, conditions
from benchmarks.results import Document

TEMPLATE = Path(__file__).parent / "page.html"


def warning(document: Document) -> str:
    """What a reader must know first; "" if nothing."""
    parts = []
    if document["environment"]["device_type"] != "cuda":
        parts.append(
            "No GPU: timings of plain torch on a CPU, shown for what they are; emulated and simulated engines were checked,"
            " not timed."
        )
    if not document["complete"]:
        parts.append("The run was interrupted: these are the cases it finished.")
    if document["left_out"]:
        parts.append(f"{len(document['left_out'])} cases did not fit into the run's budget.")
    return " ".join(parts)


def _image(name: str, figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(drawn.getvalue()).decode()
    return f'<img alt="{name}" src="data:image/svg+xml;base64,{encoded}">'


def page(document: Document, plots: Mapping[str, Figure]) -> str:
    """The HTML source."""
    rows = [
        {
            **{name: each.row[name] for name in ("case", "op", "direction", "dtype", "layout", "labels")},
            "shape": each.shape,
            "provider": each.provider,
            "status": each.status,
            "message": each.message,
            "us": each.microseconds,
            "q1": each.q1,
            "q3": each.q3,
            "tflops": each.tflops,
            "gb_s": each.gb_s,
            "share": each.share,
            "peak_mb": None if each.peak_bytes is None else each.peak_bytes / 1e6,
            **{baseline: ratio["median"] for baseline, ratio in each.ratios.items()},
        }
        for each in figures(document)
    ]
    data = {"conditions": conditions(document), "rules": RULES.replace("\n", " "), "warning": warning(document), "rows": rows}
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    images = "\n".join(_image(name, figure) for name, figure in plots.items())
    return TEMPLATE.read_text().replace("<!--PLOTS-->", images).replace("<!--DATA-->", text)
