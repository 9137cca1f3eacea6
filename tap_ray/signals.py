"""Makes SIGTERM end a job like Ctrl-C, whatever handlers the shell, Ray or a library has set.

A shell's `&` starts jobs that ignore SIGINT, and Ray aborts at SIGTERM. Here both raise KeyboardInterrupt, once:
further ones would interrupt the clean end of the job and are ignored. SIGKILL cannot be handled.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)
MAX_INTERRUPTS = 3
"""Number of Ctrl-C that end the process at once, without a clean end."""

_came: list[int] = []
_depth = 0


@contextlib.contextmanager
def handle_signals() -> Generator[None]:
    """While the body runs, signals end it; in a thread other than the main one, nothing changes."""
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    if not _depth:
        _came.clear()
    _depth += 1
    restore_handlers()
    try:
        yield
    finally:
        _depth -= 1
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def restore_handlers() -> None:
    """Restore our handlers after a library has set its own; only inside `handle_signals`."""
    if _depth and threading.current_thread() is threading.main_thread():
        for number in ENDING:
            signal.signal(number, end_job)


@contextlib.contextmanager
def library_handlers() -> Generator[None]:
    """While the body runs, a library (`ray.init`) may set handlers of its own, and may lose what they raise.

    Ray's answer to SIGTERM is SystemExit, which a callback of its C++ half swallows. What has come meanwhile is read
    from Python's own pipe for signals, and ends the job afterwards.
    """
    if not _depth or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    except SystemExit as ended:
        if ended.code not in ENDING:
            raise
    finally:
        signal.set_wakeup_fd(before)
        restore_handlers()
        with contextlib.suppress(BlockingIOError):
            _came.extend(number for number in os.read(reading, 64) if number in ENDING and number not in _came)
        os.close(reading)
        os.close(writing)
    if _came:
        raise KeyboardInterrupt


def status() -> int:
    """Exit status of a job that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + (_came[0] if _came else signal.SIGINT)


def end_job(number: int, frame: FrameType | None) -> None:
    """The handler of ENDING: KeyboardInterrupt at the first signal; the process ends at once at the SIGINT number
    MAX_INTERRUPTS."""
    _came.append(number)
    if _came.count(signal.SIGINT) >= MAX_INTERRUPTS:
        os._exit(128 + number)
    if len(_came) == 1:  # not SystemExit: Ray's C++ part lets only KeyboardInterrupt out of `ray.get`
        raise KeyboardInterrupt
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nstopping ...\n")
