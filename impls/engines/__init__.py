"""Code shared by several adapters of one library: its start in a rank, and trainers around it. Only adapters import
it."""
