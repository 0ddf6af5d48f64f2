"""The version time machine: the same cases and scripts in several releases of a library."""

from harness.versions.model import RIGHT, UNKNOWN, WRONG, CaseRow, Cell, FindingRow, Release, Versions, read, write

__all__ = ["RIGHT", "UNKNOWN", "WRONG", "CaseRow", "Cell", "FindingRow", "Release", "Versions", "read", "write"]
