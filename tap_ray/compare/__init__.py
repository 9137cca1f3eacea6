"""Comparing judged runs: the paper's table with intervals, paired tests, learning curves, one HTML page."""
