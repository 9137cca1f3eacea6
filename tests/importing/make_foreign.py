"""Writes the datasets in data/ with lerobot's own writer: 0.4.4 makes v3.0, 0.3.3 makes v2.1.

    LEROBOT_PYTHON tests/importing/make_foreign.py OUT video|image

An arm of five joints that swing, in degrees, commanded by absolute targets which it follows with a lag; a gripper, 0
closed .. 100 open, which closes after a second; 30 frames a second. The upper left corner of each image says which it
is: red 60 x the episode, green 3 x the frame.
"""

import sys
from pathlib import Path

import numpy as np

FPS, SIZE = 30, (48, 64)
TASKS = ("pick up the cube", "open the drawer")
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


def main(out: Path, kind: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot_writer import finish, save_episode  # beside this script

    names = [f"{joint}.pos" for joint in JOINTS]
    numbers = {"dtype": "float32", "shape": (6,), "names": names}
    image = {"dtype": kind, "shape": (*SIZE, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": numbers, "action": numbers, "observation.images.front": image}
    dataset = LeRobotDataset.create(
        "local/so100", FPS, features, root=out, robot_type="so100", use_videos=kind == "video"
    )
    for episode in range(3):
        save_episode(dataset, TASKS[episode % 2], frames_of(episode))
    finish(dataset)


def frames_of(episode: int) -> list[dict[str, np.ndarray]]:
    number = 42 + 12 * episode
    time_s = np.arange(number) / FPS
    middle, swing = np.array([0, -60, 70, 0, 0]), np.array([40, 25, 20, 30, 80])
    rate, phase = np.array([1.3, 1.1, 0.9, 1.7, 0.7]), np.arange(5) + episode
    joints = middle + swing * np.sin(rate * time_s[:, None] + phase)
    gripper = np.where(time_s > 1.0, 5.0, 95.0)
    target = np.concatenate([joints, gripper[:, None]], axis=1).astype(np.float32)
    state, found = target[0], []
    for step in range(number):
        rgb = np.full((*SIZE, 3), 90, np.uint8)
        x, y = int(32 + 0.5 * state[0]), int(state[2] / 3)
        rgb[y - 5 : y + 5, x - 5 : x + 5] = (200, 40, 40)
        rgb[:8, :16] = (60 * episode, 3 * step, 0)
        found.append({"observation.state": state, "action": target[step], "observation.images.front": rgb})
        state = (state + 0.6 * (target[step] - state)).astype(np.float32)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
