"""Shows progress with rate and ETA: a bar on a terminal, one line every half minute in a log file."""

import sys
import time
from typing import Any

from tqdm import tqdm

EVERY_S = 30.0
"""Time between two lines in a log, s."""


def progress_bar(**options: Any) -> tqdm:
    """`tqdm(**options)` on a terminal, `Lines(**options)` in a log file."""
    return tqdm(**options) if options.get("file", sys.stderr).isatty() else Lines(**options)


class Lines(tqdm):
    """A tqdm that writes whole lines: at the start, at most every `EVERY_S`, and at the end."""

    printed_at = float("-inf")

    @staticmethod
    def status_printer(file: Any) -> Any:
        """The function with which `display` writes."""

        def write(text: str) -> None:
            if text.strip():
                file.write(f"{text.rstrip()}\n")
                file.flush()

        return write

    def refresh(self, *args: Any, **options: Any) -> Any:
        """Write a line if the last one is old enough."""
        if not self.disable and time.monotonic() - self.printed_at >= EVERY_S:
            self.printed_at = time.monotonic()
            return super().refresh(*args, **options)
        return None
