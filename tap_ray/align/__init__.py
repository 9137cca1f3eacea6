"""Stage 2: learning tasks from a few demonstrations with instructions."""
