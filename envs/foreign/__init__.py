"""Runs third-party environments behind adapters that say what their numbers mean (docs/how-to/environment.md)."""
