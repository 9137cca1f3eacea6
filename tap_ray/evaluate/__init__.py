"""Evaluates policies: protocol cells, rollouts, results with intervals, videos."""
