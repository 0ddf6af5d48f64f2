"""A small topic for each contract: the required files of a topic's folder, and no others."""
