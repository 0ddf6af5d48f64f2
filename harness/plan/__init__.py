"""What a session runs: cards × what was asked for, before anything starts."""
