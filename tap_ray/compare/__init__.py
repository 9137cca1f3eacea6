"""Compares evaluated policies: the paper's table with intervals, paired tests, learning curves, one HTML page."""
