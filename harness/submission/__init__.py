"""A run as a file that others can check: its records, environment and command, with a digest of each part."""

from harness.submission.bundle import Bundle, BundleError, make, read
from harness.submission.confirm import Outcome, confirm, inconsistent

__all__ = ["Bundle", "BundleError", "Outcome", "confirm", "inconsistent", "make", "read"]
