"""Sweeps without Ray: a YAML file as trials, what they will cost, the ledger as tables, plots and pages, studies."""
