"""How often tests kill what they kill at random moments."""

import os

KILLS = int(os.environ.get("KILLS", "1"))
"""Of each kind; `make faults` does ten."""
