"""A grid of cells to records."""

from mergekit_lite.study.grid import adapted_to, cell_key, compute, run
from mergekit_lite.study.records import Cell, CurvePoint, Record

__all__ = ["Cell", "CurvePoint", "Record", "adapted_to", "cell_key", "compute", "run"]
