"""The measured part of the repository's README.md, which is generated from the committed results between two markers."""

from __future__ import annotations

from pathlib import Path

from benchmarks import results
from benchmarks.environment import REPOSITORY
from benchmarks.report import plots, tables
from benchmarks.report.files import merge
from benchmarks.report.text import markdown
from torch_unroll.kernels import digest

README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks -->", "<!-- end: benchmarks -->"

_NOTHING = """\
No figures yet: nothing has been measured on a GPU so far. [One command](#prove-it-on-your-gpu) measures the most telling cases in
eight minutes."""


def files() -> list[Path]:
    """The committed result files. The folder may also hold JSON files of other schemas, such as `run.json` of a run on a GPU."""
    return [path for path in sorted(RESULTS.rglob("*.json")) if f'"{results.SCHEMA}"' in path.read_text()[:200]]


def measured() -> list[results.Document]:
    """The committed results that were measured on GPUs."""
    documents = [results.load(path) for path in files()]
    return [document for document in documents if document["environment"]["device_type"] == "cuda"]


def text(documents: list[results.Document]) -> str:
    """The text between the markers."""
    if not documents:
        return _NOTHING
    document = merge(documents)
    parts = [
        f"{tables.conditions(document)}. {tables.RULES}",
        *caveats(documents),
        "![Share of the ceilings](benchmarks/results/roofline.png)",
    ]
    rows = tables.summary_rows(document)
    for op in dict.fromkeys(row[0] for row in rows):
        parts.append(tables.summary({**document, "rows": [row for row in document["rows"] if row["op"] == op]}, markdown))
    losing = tables.slowest(document)
    if losing:
        parts += ["Where torch is faster:", tables.family(losing)]
    return "\n\n".join(parts)


def caveats(documents: list[results.Document], kernels: str | None = None) -> list[str]:
    """Sentences that warn of an incomplete run, of figures from several GPUs, and of kernels that have changed since the runs.

    `kernels` is the digest of the current kernels; by default, it is computed from the sources.
    """
    kernels = kernels or digest()
    sentences = []
    if not all(document["complete"] for document in documents):
        sentences.append("The run was cut short; the cases that it did not reach are missing.")
    names = {document["environment"]["device"] for document in documents}
    if len(names) > 1:
        sentences.append(f"The figures are of several GPUs, {', '.join(sorted(names))}, and cannot be compared with each other.")
    others = {document["environment"].get("engine_digest", "unknown kernels") for document in documents} - {kernels}
    if others:
        sentences.append(
            f"The kernels have changed since: the figures are of {', '.join(sorted(others))}, the sources here are {kernels}."
        )
    return sentences


def apply(readme: str, generated: str) -> str:
    """The source of README.md with the generated text between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: expected the markers {BEGIN} and {END}")
    return f"{before}{begin}\n\n{generated}\n\n{end}{after}"


def rewrite() -> None:
    """Updates README.md and its figure."""
    documents = measured()
    README.write_text(apply(README.read_text(), text(documents)))
    if documents:
        figure = plots.roofline(merge(documents))
        if figure is not None:
            plots.save(figure, RESULTS / "roofline.png")
