"""An episode by lerobot's own writer, 0.3.3 or 0.4.4. For the scripts beside it, in lerobot's environment."""

from collections.abc import Iterable
from typing import Any


def save_episode(dataset: Any, task: str, frames: Iterable[dict[str, Any]]) -> None:
    import lerobot

    for frame in frames:
        if lerobot.__version__.startswith("0.3"):
            dataset.add_frame(frame, task=task)
        else:
            dataset.add_frame({**frame, "task": task})
    dataset.save_episode()


def finish(dataset: Any) -> None:
    if hasattr(dataset, "finalize"):
        dataset.finalize()
