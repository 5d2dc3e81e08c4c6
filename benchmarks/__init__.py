"""Measurements and comparisons: each script prints a table and writes a plot."""
