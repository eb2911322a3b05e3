"""A file for each benchmark: its data, what it asks, how its answers are scored."""
