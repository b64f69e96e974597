"""`python -m torch_unroll COMMAND ...`: a command is a module with a function `main(arguments)`, imported when the command is
run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

#: Command -> its module, and its purpose.
COMMANDS = {
    "compile": ("torch_unroll.tools.compile", "fills engine cupy's cache of compiled kernels ahead of time; needs no GPU"),
    "doctor": ("torch_unroll.tools.doctor", "what can run here, what would make the rest run, and why it is not faster"),
    "depth": ("torch_unroll.training.depth", "does a deeper network learn? plain and residual ones on real digits, with a plot"),
    "params": ("torch_unroll.models.params", "how many parameters the lecture's layers and networks have"),
    "search": ("torch_unroll.search.command", "architecture search on small networks: grid, random, Hyperband, DARTS, NTK"),
    "support": ("torch_unroll.tools.support", "which engine computes which op in which dtype"),
    "train": ("torch_unroll.training.train", "trains a network on pictures in folders; resumes after any end"),
}


def usage() -> str:
    """The text of `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m torch_unroll COMMAND [OPTION...]",
            "",
            "commands:",
            *lines,
            "",
            "`python -m torch_unroll COMMAND --help` explains a command and shows how it is used.",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns its exit status, or 2 for an invalid command line."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"torch_unroll: no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[name][0]).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
