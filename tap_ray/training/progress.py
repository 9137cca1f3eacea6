"""Shows the progress of a training: reads metrics.jsonl as it grows, shows a bar and calls `log`.

It reads the file and not the training process, so the same code works for one process, for workers on many machines,
and for workers that are replaced and write the same steps again.
"""

import contextlib
import threading
from typing import Any, Callable, Iterator, Mapping

from tap_ray import logs, storage
from tap_ray.errors import StorageError
from tap_ray.progress_bar import progress_bar
from tap_ray.training import session
from tap_ray.training.session import METRICS, TrainJob

Log = Callable[[Mapping[str, float], int], None]
POLL_S = 0.5
"""How often to poll for new lines, s."""
REMOTE_POLL_S = 3.0
"""How often to poll for new lines on an object store, s, where each request costs money."""


def train_here(job: TrainJob, *, log: Log | None = None, progress: bool = True) -> dict[str, float]:
    """Train in this process, from its newest checkpoint on; see `session.work`.

    Args:
        job: the training and its run folder.
        log: called with each line of metrics and its step.
        progress: whether to draw a bar.

    Returns:
        The last value of every metric.
    """
    with follow(job, log, progress=progress):
        session.work(job)
    return session.final_metrics(job.run)


@contextlib.contextmanager
def follow(job: TrainJob, log: Log | None, *, progress: bool) -> Iterator[None]:
    """While the body runs, draw the bar and pass each new line of metrics to `log`."""
    with progress_bar(total=job.config.steps, unit="step", disable=not progress, smoothing=0.1) as bar:
        follower = _Follower(job, log, bar)
        try:
            with every(REMOTE_POLL_S if storage.is_remote(job.run) else POLL_S, follower.poll):
                yield
        finally:
            follower.poll()


@contextlib.contextmanager
def every(seconds: float, poll: Callable[[], None]) -> Iterator[None]:
    """While the body runs, call `poll` periodically in a thread, which ends with the body."""
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds):
            poll()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Follower:
    """Tracks which lines have been passed on, even if the first worker rewrites the file after a failure."""

    def __init__(self, job: TrainJob, log: Log | None, bar: Any) -> None:
        self._file, self._log, self._bar = job.run / METRICS, log, bar
        newest = session.newest_step(job.run)
        self._seen = {_key(line) for line in session.read_metrics(self._file) if line["step"] <= newest}
        self._text = ""
        bar.reset()
        bar.initial = bar.n = bar.last_print_n = newest  # steps of an earlier process do not count for the rate
        bar.refresh()

    def poll(self) -> None:
        """Pass on new lines."""
        for line in self._new_lines():
            self._hand_on(line)

    def _new_lines(self) -> list[dict[str, float]]:
        try:
            text = logs.read(self._file).decode()
        except (FileNotFoundError, StorageError):  # missing or unreachable: the next call reads it all
            return []
        text = text[: text.rfind("\n") + 1]
        new = text.removeprefix(self._text)
        self._text = text
        return session.parse_metrics(new)

    def _hand_on(self, line: dict[str, float]) -> None:
        if _key(line) in self._seen:
            return
        self._seen.add(_key(line))
        step = int(line["step"])
        if self._log is not None:
            self._log({name: value for name, value in line.items() if name != "step"}, step)
        self._bar.set_postfix_str(describe(line), refresh=False)
        self._bar.update(max(0, step - self._bar.n))


def _key(line: Mapping[str, float]) -> tuple[Any, ...]:
    return (line["step"], *sorted(line))


def describe(line: Mapping[str, float]) -> str:
    """A short text of a line of metrics: loss, samples per second, share of the time spent waiting for data."""
    short = {name.rpartition("/")[2]: value for name, value in line.items()}
    words = {"loss": "loss {:.4f}", "samples_per_s": "{:.0f} samples/s", "data_wait_pct": "data wait {:.0f} %"}
    return ", ".join(text.format(short[name]) for name, text in words.items() if name in short)
