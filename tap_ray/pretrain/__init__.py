"""Stage 1: learning to move from play, without instructions."""
