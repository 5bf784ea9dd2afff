"""A grid of cells to records: `run` answers each cell, and keeps its record under a key."""

from mergekit_lite.study.grid import run
from mergekit_lite.study.keys import cell_key
from mergekit_lite.study.records import Cell, CurvePoint, Record

__all__ = ["Cell", "CurvePoint", "Record", "cell_key", "run"]
