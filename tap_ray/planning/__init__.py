"""Estimates what a training needs before it starts: parameters, memory, FLOPs, steps/s (`--plan`), and what would
fit."""
