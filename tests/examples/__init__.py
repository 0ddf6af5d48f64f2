"""A small topic of each contract: what one folder must hold, and no more."""
