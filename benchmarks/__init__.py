"""Measurements and comparisons: each script prints a table and writes a plot."""

from lightning_posttrain import check_siblings

check_siblings(__name__)
