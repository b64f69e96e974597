"""Reports: Markdown tables, plots, and one page to look at, all from result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot

from benchmarks.report import html, plots, tables
from benchmarks.results import Document, differences


def merge(documents: Sequence[Document]) -> Document:
    """Several results of one machine as one; of a case measured twice the later row counts."""
    first = documents[0]
    for other in documents[1:]:
        changed = differences(first["environment"], other["environment"])
        if changed:
            raise ValueError(f"these results were measured under different conditions ({'; '.join(changed)}): report them apart")
    rows = {row["case"]: row for document in documents for row in document["rows"]}
    return {
        **first,
        "rows": list(rows.values()),
        "overheads": [each for document in documents for each in document["overheads"]],
        "left_out": [case for document in documents for case in document["left_out"] if case not in rows],
        "complete": all(document["complete"] for document in documents),
    }


def write(documents: Sequence[Document], folder: Path, stem: str) -> list[Path]:
    """Writes `<stem>.md`, `<stem>.html` and `<stem>-<plot>.png`; yields what it wrote."""
    document = merge(documents)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(document)
    written = [folder / f"{stem}.md", folder / f"{stem}.html"]
    pictures = {name: folder / f"{stem}-{name}.png" for name in drawn}
    images = "".join(f"\n![{name}]({path.name})\n" for name, path in pictures.items())
    written[0].write_text(tables.report(document) + images)
    written[1].write_text(html.page(document, drawn))
    for name, figure in drawn.items():
        plots.save(figure, pictures[name])
        pyplot.close(figure)
    return [*written, *pictures.values()]
