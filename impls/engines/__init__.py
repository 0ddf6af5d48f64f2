"""What several adapters of one library share: its start in a rank, and trainers around it. Only adapters import it."""
