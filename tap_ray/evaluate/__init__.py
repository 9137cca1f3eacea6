"""Evaluating a policy: protocol cells, roll-outs, results with intervals, videos."""
