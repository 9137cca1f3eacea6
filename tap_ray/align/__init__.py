"""Stage 2: learning what to do, from few demonstrations with instructions."""
