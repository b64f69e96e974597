"""The files of a report: Markdown, HTML and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import html, plots, tables
from benchmarks.results import Document, differences


def merge(documents: Sequence[Document]) -> Document:
    """Merges several results of one machine. If a case was measured twice, the row of the later document is kept; the ceilings
    are those of the first document.

    Raises:
        ValueError: the results were measured under different conditions.
    """
    first = documents[0]
    for other in documents[1:]:
        changed = differences(first["environment"], other["environment"])
        if changed:
            raise ValueError(f"these results were measured under different conditions ({'; '.join(changed)}): report them apart")
    rows = {row["case"]: row for document in documents for row in document["rows"]}
    return {
        **first,
        "rows": list(rows.values()),
        "overheads": [overhead for document in documents for overhead in document["overheads"]],
        "left_out": [case for document in documents for case in document["left_out"] if case not in rows],
        "complete": all(document["complete"] for document in documents),
    }


def write(documents: Sequence[Document], folder: Path, stem: str) -> list[Path]:
    """Writes `<stem>.md`, `<stem>.html` and `<stem>-<plot>.png`, and returns the paths that were written."""
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
    return [*written, *pictures.values()]
