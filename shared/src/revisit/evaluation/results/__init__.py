"""Results compared: which may be, intervals, costs, tables."""
