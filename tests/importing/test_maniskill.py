"""What ManiSkill's own recorder writes, of a robot and a task that nobody here wrote."""

from pathlib import Path

import numpy as np
import pytest

from tap_ray.errors import DataError
from tap_ray.importing.checks import findings
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.hdf5 import Hdf5Source
from tap_ray.importing.mapping import require_fits
from tap_ray.importing.settings import open_source, read_mapping

pytest.importorskip("mani_skill", reason="ManiSkill runs on Linux only")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 60


def record(folder: Path, obs_mode: str) -> Path:
    """Two episodes of Panda's PickCube: a slow wave of the end effector, the gripper closing half-way."""
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.wrappers.record import RecordEpisode

    env = gym.make(
        "PickCube-v1", obs_mode=obs_mode, control_mode="pd_ee_delta_pose", sim_backend="physx_cpu",
        render_backend="cpu", sensor_configs={"width": 32, "height": 32}, max_episode_steps=STEPS,
    )  # fmt: skip
    env = RecordEpisode(env, str(folder), save_video=False, trajectory_name="t", source_type="", source_desc="")
    for episode in range(2):
        env.reset(seed=episode)
        for step in range(STEPS):
            action = np.zeros(7, np.float32)
            action[:3] = 0.3 * np.sin(2 * np.pi * step / 40 + np.arange(3) + episode)
            action[6] = 1 if step < STEPS // 2 else -1
            env.step(action)
    env.close()
    return folder / "t.h5"


@pytest.mark.long_proof  # test_chain.py goes on to a policy
def test_a_recording_becomes_episodes(tmp_path: Path) -> None:
    source, mapping = open_source(record(tmp_path, "rgb")), read_mapping(Path("maniskill_panda"))
    require_fits(mapping, source)
    assert (source.fps, source.num_episodes) == (20.0, 2)
    assert findings(mapping, source, [0, 1]) == []
    episode = episode_of(mapping, source, 1, index=0, options=ConvertOptions(quality=90))
    assert (len(episode), episode.task) == (STEPS // 4, "pick up the cube and hold it at the green ball")
    waves = 0.3 * np.sin(2 * np.pi * np.arange(STEPS) / 40 + 0 + 1)  # dx of the second episode
    np.testing.assert_allclose(episode.action[:, 0], 0.1 * waves.reshape(-1, 4).sum(axis=1), atol=1e-6)
    assert episode.action[:, 6].tolist() == [1.0] * 7 + [-1.0] * 8  # frame 31 of step 7 closes already
    assert episode.state[0, 7] == pytest.approx(1, abs=0.05)
    assert episode.state[-1, 7] < 0.2


def test_a_recording_without_images_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no camera images.*replay_trajectory --traj-path FILE --obs-mode rgb"):
        Hdf5Source(record(tmp_path, "state_dict"))
    (tmp_path / "x.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x\.h5 cannot be read as an HDF5 file"):
        Hdf5Source(tmp_path / "x.h5")
