"""Writes episodes with lerobot's own writer: 0.4.4 makes v3.0, 0.3.3 makes v2.1. Run in lerobot's environment.

    LEROBOT_PYTHON tests/importing/rewrite.py EPISODES.npz OUT video|image

EPISODES.npz holds fps, state_names, action_names, and for episode i rgb_i (T, Y, X, 3), state_i, action_i, task_i.
"""

import sys
from pathlib import Path

import numpy as np


def main(episodes: Path, out: Path, kind: str) -> None:
    import lerobot  # only where the files are made
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    given = np.load(episodes)
    number = sum(name.startswith("rgb_") for name in given.files)
    features = {
        "observation.state": vector(given["state_names"]),
        "action": vector(given["action_names"]),
        "observation.images.front": {
            "dtype": kind, "shape": given["rgb_0"].shape[1:], "names": ["height", "width", "channels"],
        },
    }  # fmt: skip
    dataset = LeRobotDataset.create(
        "local/rewritten", int(given["fps"]), features, root=out, robot_type="any", use_videos=kind == "video"
    )
    for episode in range(number):
        task = str(given[f"task_{episode}"])
        for rgb, state, action in zip(
            *(given[f"{name}_{episode}"] for name in ("rgb", "state", "action")), strict=True
        ):
            frame = {"observation.state": state, "action": action, "observation.images.front": rgb}
            if lerobot.__version__.startswith("0.3"):
                dataset.add_frame(frame, task=task)
            else:
                dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()


def vector(names: np.ndarray) -> dict:
    return {"dtype": "float32", "shape": (len(names),), "names": [str(name) for name in names]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
