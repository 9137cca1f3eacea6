"""Handles sweeps without Ray: turns a YAML file into trials, predicts their cost, shows the ledger as tables, plots and
pages, and writes studies."""
