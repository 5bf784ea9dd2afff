"""A grid of cells to records: `run` answers each cell, and keeps its record under a key."""

from mergekit_lite.study.grid import run
from mergekit_lite.study.keys import cell_key
from mergekit_lite.study.pairs import before_and_after
from mergekit_lite.study.records import Cell, CurvePoint, Record

__all__ = ["Cell", "CurvePoint", "Record", "before_and_after", "cell_key", "run"]
