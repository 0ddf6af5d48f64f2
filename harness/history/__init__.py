"""What a store's runs say together: series of a figure, comparisons of runs, and change points."""

from harness.history.model import Alarm, Change, Comparison, Point, Series

__all__ = ["Alarm", "Change", "Comparison", "Point", "Series"]
