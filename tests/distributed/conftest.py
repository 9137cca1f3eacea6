"""Tests and the processes that they start find toy_training.py and toy_player.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
