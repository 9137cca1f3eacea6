"""Writes a data set as a process of its own, to be killed: writing_child.py PATH NUM_EPISODES."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent


def made_up():
    """conftest.py as a module."""
    spec = importlib.util.spec_from_file_location("made_up_robots", HERE / "conftest.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    made_up().write_dataset(sys.argv[1], int(sys.argv[2]))
