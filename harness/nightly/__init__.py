"""A night: the suites, then what their figures say beside those of earlier nights, then whoever must know is told."""
