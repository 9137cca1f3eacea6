"""Progress that is kept in a file is lines, and few of them."""

import io
import time

import pytest

from tap_ray import progress_bar as module
from tap_ray.progress_bar import Lines, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(file: io.StringIO) -> str:
    with progress_bar(total=1000, unit="episode", file=file) as bar:
        for number in range(1000):
            bar.set_postfix_str(f"{number} lost")
            bar.update()
    return file.getvalue()


def test_a_file_gets_the_first_and_the_last_state_as_lines() -> None:
    text = run(io.StringIO())
    assert "\r" not in text
    first, last = (line for line in text.splitlines() if line)
    assert " 0/1000 " in first
    assert " 1000/1000 " in last
    assert "999 lost" in last


def test_lines_come_as_often_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    file = io.StringIO()
    with Lines(total=10, file=file) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now[0])  # tqdm's own clock
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        bar.printed_at = bar.last_print_t = bar.start_t = 0.0
        for _ in range(10):  # a step every 20 s: lines after 40, 80, 120, 160 and 200 s
            now[0] += 20.0
            bar.update()
    counts = [int(line.split("|")[-1].split("/")[0]) for line in file.getvalue().splitlines() if line]
    assert counts == [0, 2, 4, 6, 8, 10, 10]
    assert module.EVERY_S == 30.0


def test_a_terminal_gets_a_bar_and_a_quiet_job_nothing() -> None:
    assert run(Terminal()).count("\r") > 2
    quiet = io.StringIO()
    with progress_bar(total=2, disable=True, file=quiet) as bar:
        bar.update()
    assert quiet.getvalue() == ""
