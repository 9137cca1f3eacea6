"""Writes episodes with lerobot's own writer: 0.4.4 makes v3.0, 0.3.3 makes v2.1. Run in lerobot's environment.

    LEROBOT_PYTHON tests/importing/rewrite.py EPISODES.npz OUT video|image

EPISODES.npz holds fps, state_names, action_names, and for episode i rgb_i (T, Y, X, 3), state_i, action_i, task_i.
"""

import sys
from pathlib import Path

import numpy as np


def main(episodes: Path, out: Path, kind: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot_writer import finish, save_episode  # beside this script

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
        names = ("observation.state", "action", "observation.images.front")
        rows = zip(*(given[f"{name}_{episode}"] for name in ("state", "action", "rgb")), strict=True)
        frames = (dict(zip(names, row, strict=True)) for row in rows)
        save_episode(dataset, str(given[f"task_{episode}"]), frames)
    finish(dataset)


def vector(names: np.ndarray) -> dict:
    return {"dtype": "float32", "shape": (len(names),), "names": [str(name) for name in names]}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
