"""What a user reads who starts training with the wrong things; Ray is never started for it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import align, pretrain
from tap_ray import runs
from tap_ray.align.demos import AlignConfig
from tap_ray.config import digest, load
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import require_batches
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed.train import made_by
from tap_ray.errors import CheckpointError, ConfigError, DataError, SpecError
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.stages import open_align, pretrain_windows
from tests.distributed import toy_player
from tests.made_data import write_made_dataset


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up demonstrations of three tasks."""
    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("jobs") / "demos", 24)


@pytest.mark.parametrize(("field", "value"), [("num_episodes", 100), ("holdout_every", 5)])
def test_live_play_has_no_episodes_of_a_dataset(field: str, value: int):
    config = PretrainConfig(live_play=True, windows=WindowConfig(**{field: value}))
    flag = f"--windows.{field.replace('_', '-')} {value}"
    with pytest.raises(ConfigError, match=f"{flag} has no effect: .* --play.episodes are held out"):
        config.require_used(config.resolve_windows(), config.policy)
    held_out = pretrain_windows(config)
    assert (held_out.num_episodes, held_out.holdout_every) == (config.play.episodes, 2)


def test_neither_data_nor_live_play():
    with pytest.raises(ConfigError, match=r"either a dataset of play \(--data PATH\) or --live-play, but not both"):
        pretrain.main(PretrainConfig())


def test_no_such_data(tmp_path: Path):
    with pytest.raises(DataError, match=r"There is no dataset at .*nowhere: it does not exist"):
        pretrain.main(PretrainConfig(data=(str(tmp_path / "nowhere"),)))


def test_nothing_held_out(demos: Path):
    with pytest.raises(DataError, match="no episode is held out"):
        pretrain.main(PretrainConfig(data=(str(demos),), windows=WindowConfig(num_episodes=6)))


def test_a_checkpoint_that_is_missing(demos: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        align.main(AlignJobConfig(demos=demos, init=str(tmp_path / "nowhere")))


def test_a_data_set_is_no_checkpoint(demos: Path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        align.main(AlignJobConfig(demos=demos, init=str(demos)))


def test_not_one_batch_is_said_before_ray_starts(demos: Path):
    """24 episodes of 8 to 12 steps, every 19th held out: 23 in one group have at most 276 windows."""
    dataset = open_dataset(demos)
    require_batches(dataset, WindowConfig(batch_size=64), num_workers=1)
    message = "23 training episodes in groups of 23 do not give worker 0 of 1 a single batch of 512 windows. Lower the"
    with pytest.raises(ConfigError, match=message):
        require_batches(dataset, WindowConfig(batch_size=512), num_workers=1)
    with pytest.raises(ConfigError, match=r"in groups of 2 do not give worker 0 of 9 a single batch of 64"):
        require_batches(dataset, WindowConfig(batch_size=64), num_workers=9)


def test_a_colon_is_part_of_a_data_sets_name_where_one_lies_there(demos: Path, tmp_path: Path):
    named = tmp_path / "play_2026-11-27_10:30:02"
    named.symlink_to(demos)
    assert PriorJobConfig(data=(str(named), f"{named}:3")).sources() == ([demos, demos], [1.0, 3.0])
    assert PriorJobConfig(data=("s3://bucket/play", "s3://bucket/play:2")).sources()[1] == [1.0, 2.0]


@pytest.mark.parametrize("weight", ["nan", "inf", "0", "-1"])
def test_a_weight_that_no_batch_can_have(weight: str):
    message = rf"^--data play:{weight}: the weight of play must be more than 0 and finite; got {weight}\."
    with pytest.raises(ConfigError, match=message):
        PriorJobConfig(data=(f"play:{weight}",)).sources()


def folder_of(root: Path, *data: str) -> Path:
    """Where Stage 1 on these datasets lies."""
    config = PretrainConfig(data=data)
    return runs.folder_of(root, job="pretrain", config=made_by(config), parents=config.parents())


def test_a_mixtures_weights_and_order_make_the_run(demos: Path, tmp_path: Path):
    copy, one = tmp_path / "copy", str(demos)
    shutil.copytree(demos, copy)
    (tmp_path / "link").symlink_to(demos)
    assert folder_of(tmp_path, one) == folder_of(tmp_path, f"{one}:3") == folder_of(tmp_path, str(tmp_path / "link"))
    mixed = [folder_of(tmp_path, one, str(copy)), folder_of(tmp_path, one, f"{copy}:0.3"), folder_of(tmp_path, one)]
    assert len({*mixed}) == 3
    assert folder_of(tmp_path, f"{tmp_path / 'link'}:1", str(copy)) == mixed[0]
    assert PretrainConfig(data=(one, str(copy))).parents() == {"data_0": demos, "data_1": copy}


def test_a_new_setting_does_not_rename_runs():
    """The names of finished runs, and the folders of a sweep, follow from this: a setting that is new and not used must
    not be part of it (`made_by`, `explorer_values`)."""
    configs = [
        PretrainConfig(data=("play",)),
        AlignJobConfig(demos=Path("demos"), init="scratch"),
        PriorJobConfig(data=("play",)),
    ]
    digests = ["2664391dcdeb4e10", "4d799a76efeb2d44", "c3981e7a69bac0b1"]
    assert [digest(made_by(config).identity) for config in configs] == digests


def aligned(root: Path, demos: Path, *play: str) -> Path:
    """Where Stage 2 with this play beside the demonstrations lies."""
    config = AlignJobConfig(demos=demos, init="scratch", play=play)
    return runs.folder_of(root, job="align", config=made_by(config), parents=open_align(config).parents())


def test_play_beside_demonstrations_makes_the_run_by_weights_and_order(demos: Path, tmp_path: Path):
    copy, one = tmp_path / "copy", str(demos)
    shutil.copytree(demos, copy)
    assert aligned(tmp_path, demos, one) == aligned(tmp_path, demos, f"{one}:3") != aligned(tmp_path, demos)
    mixed = [aligned(tmp_path, demos, one, str(copy)), aligned(tmp_path, demos, one, f"{copy}:0.3")]
    assert len({*mixed, aligned(tmp_path, demos, one)}) == 3
    assert aligned(tmp_path, demos, f"{one}:1", str(copy)) == mixed[0]
    config = AlignJobConfig(demos=demos, init="scratch", play=(one, str(copy)))
    assert open_align(config).parents() == {"demos": demos, **config.play_parents()}


def test_the_name_that_a_run_with_play_had_when_there_could_be_one_only():
    """Its path as it was typed, and null without any."""
    config = AlignJobConfig(demos=Path("d"), init="scratch", play=("somewhere/play:2",))
    assert made_by(config).identity["play"] == "somewhere/play"
    assert made_by(replace(config, play=())).identity["play"] is None


def test_play_beside_demonstrations_that_cannot_be(demos: Path, tmp_path: Path):
    other = write_made_dataset(tmp_path / "other", num_episodes=2, tasks=("play",))
    shutil.copytree(demos, tmp_path / "copy")

    def start(*play: str) -> None:
        align.main(AlignJobConfig(demos=demos, init="scratch", play=play))

    with pytest.raises(SpecError, match=r"robot: dataset .*other has 'square', dataset .*demos has"):
        start(str(demos), f"{other}:2")
    with pytest.raises(ConfigError, match=r"64 windows in a batch, the dataset of weight 0\.001 .*--align\.play-batch"):
        start(str(demos), f"{tmp_path / 'copy'}:0.001")
    with pytest.raises(ConfigError, match=r"^--play play:0: the weight of play must be more than 0"):
        start("play:0")


def test_one_dataset_in_a_file_of_before_is_a_mixture_of_one(tmp_path: Path):
    """As config.json had it when there could be one only; null with live play."""
    (tmp_path / "one.json").write_text('{"data": "play"}')
    (tmp_path / "live.json").write_text('{"data": null, "live_play": true}')
    assert load(PretrainConfig, tmp_path / "one.json").data == ("play",)
    assert load(PretrainConfig, tmp_path / "live.json").data == ()
    (tmp_path / "align.json").write_text('{"demos": "d", "init": "scratch", "play": "play"}')
    assert load(AlignJobConfig, tmp_path / "align.json").play == ("play",)


def test_only_the_episodes_of_play_that_are_used_make_the_run():
    first = WindowConfig(num_episodes=8)
    assert made_by(PretrainConfig(data=("play",), windows=first)).episodes == {"data": 8}
    assert made_by(PretrainConfig(data=("play", "more"), windows=first)).episodes == {"data_0": 8, "data_1": 8}
    cloning = AlignJobConfig(demos=Path("demos"), init="scratch", windows=first)
    assert made_by(cloning).episodes == {}
    cotraining = replace(cloning, play=("play",), align=AlignConfig(play_episodes=7))
    assert made_by(cotraining).episodes == {"play": 7}


def test_a_mixture_of_two_robots_is_refused_before_ray_starts(demos: Path, tmp_path: Path):
    other = write_made_dataset(tmp_path / "other", num_episodes=2, tasks=("play",))
    with pytest.raises(SpecError, match=r"robot: dataset .*other has 'square', dataset .*demos has"):
        pretrain.main(PretrainConfig(data=(str(demos), f"{other}:2")))


def test_the_weights_of_a_prior_make_the_run_and_the_spelling_of_its_paths_does_not(demos: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(demos)

    def folder(text: str) -> Path:
        config = PriorJobConfig(data=(text,))
        parents = {"play_0": config.sources()[0][0]}
        return runs.folder_of(tmp_path, job="pretrain", config=made_by(config), parents=parents)

    assert folder(str(demos)) == folder(str(tmp_path / "link")) == folder(f"{demos}:1")
    assert folder(f"{demos}:2") != folder(str(demos))
