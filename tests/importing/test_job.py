"""jobs.import_dataset on a real Ray: a dataset by every rule of the format, once and for all."""

import shutil
from pathlib import Path

import pytest

from jobs import import_dataset
from tap_ray.dataset.lerobot import open_dataset
from tap_ray.dataset.verify import verify
from tap_ray.errors import ConfigError, DataError
from tap_ray.importing.settings import ImportConfig
from tests.digests import digests

DATA = Path(__file__).parent / "data"
SO100 = Path("tap_ray/importing/mappings/so100.yaml")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def config(out: Path, source: Path = DATA / "v30_video", **changed) -> ImportConfig:
    return ImportConfig(source=source, mapping=SO100, out=out, fleets=1, **changed)


@pytest.mark.cluster
@pytest.mark.local_ray
def test_a_source_becomes_a_dataset(tmp_path: Path, mlflow_uri: str, capsys) -> None:
    out = import_dataset.main(config(tmp_path / "play", omit=(1,)))
    assert not [rule for rule in verify(out) if rule.problems]
    dataset = open_dataset(out)
    assert dataset.lengths.tolist() == [7, 11]  # 42 and 66 frames at 30 Hz
    assert [slot.name for slot in dataset.header.spec.action] == ["dq1", "dq2", "dq3", "dq4", "dq5", "gripper"]
    made = digests(out)
    assert import_dataset.main(config(tmp_path / "play", omit=(1,))) == out
    assert "already has its 2 episodes" in capsys.readouterr().out
    assert digests(out) == made
    with pytest.raises(DataError, match="episodes"):  # another set of episodes is another dataset
        import_dataset.main(config(tmp_path / "play"))


def test_a_dry_run_shows_and_makes_nothing(tmp_path: Path, capsys) -> None:
    import_dataset.main(config(tmp_path / "play", dry_run=True))
    output = capsys.readouterr().out
    assert "3 episodes; of 3 of them 27 control steps at 5 Hz, from 30 frames per second" in output
    assert "'pick up the cube'; 'open the drawer'" in output
    assert [path.name for path in tmp_path.iterdir()] == ["play.dry_run.png"]


def test_what_looks_wrong_ends_it_unless_it_is_accepted(tmp_path: Path, capsys) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SO100.read_text().replace("unit: deg", "unit: rad"))
    job_config = ImportConfig(source=DATA / "v30_video", mapping=wrong, out=tmp_path / "play", dry_run=True)
    with pytest.raises(DataError, match=r"seems to be wrong:\n  - q1, .*They seem to be degrees[\s\S]*add --accept"):
        import_dataset.main(job_config)
    import_dataset.main(ImportConfig(**{**vars(job_config), "accept": True}))
    assert "Imported despite these findings" in capsys.readouterr().out


def test_episodes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--omit 3: the source has the episodes 0 \.\. 2"):
        import_dataset.main(config(tmp_path / "play", omit=(3,)))
    with pytest.raises(ConfigError, match=r"--episodes 9: the source has only 3"):
        import_dataset.main(config(tmp_path / "play", episodes=9))
    with pytest.raises(ConfigError, match="--omit omits all episodes"):
        import_dataset.main(config(tmp_path / "play", omit=(0, 1, 2)))
    shutil.copytree(DATA / "v30_video", tmp_path / "none")
    shutil.rmtree(tmp_path / "none/meta/episodes")
    with pytest.raises(DataError, match=r"has 0 episodes, but info\.json says 3"):
        import_dataset.main(config(tmp_path / "play", source=tmp_path / "none"))
