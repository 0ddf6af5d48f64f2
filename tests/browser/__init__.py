"""The report, against planted records."""
