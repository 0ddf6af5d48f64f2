"""References for every technique, and adapters to the engines that implement it."""
