"""What a library does with signals while it starts does not keep a job from ending; real processes."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from tap_ray import signals

def library():  # as ray.init: SIGTERM is SystemExit, and a callback loses what is raised in it
    {way}

with signals.handle_signals():
    try:
        with signals.library_handlers():
            library()
        print("went on")
    except KeyboardInterrupt:
        sys.exit(signals.status())
"""
LOSES = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        pass
"""
SWALLOWS = """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except SystemExit:
        pass
"""
EXITS = """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""


@pytest.mark.parametrize(
    ("way", "status"),
    [(LOSES, 130), (EXITS, 143), (SWALLOWS, 143), ("sys.exit(3)", 3), ("pass", 0)],
    ids=("loses", "exits", "swallows", "own", "-"),
)
def test_a_signal_while_a_library_starts(way: str, status: int) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(way=way)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == status, completed.stderr
    assert (completed.stdout == "went on\n") is (way == "pass")
