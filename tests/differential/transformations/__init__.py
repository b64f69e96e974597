"""What programs do with models: a transformation is a function that does the same to torch's model and to ours."""

from tests.differential.transformations import autocast, derivatives, functional, mistakes, modules, places, programs
from tests.differential.transformations.registry import TRANSFORMATIONS, Results, Transformation

__all__ = [
    "TRANSFORMATIONS",
    "Results",
    "Transformation",
    "autocast",
    "derivatives",
    "functional",
    "mistakes",
    "modules",
    "places",
    "programs",
]
