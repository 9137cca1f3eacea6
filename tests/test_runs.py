import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import compare
from tap_ray import runs
from tap_ray.config import digest, load
from tap_ray.errors import CheckpointError, ConfigError, StorageError
from tap_ray.runs import MadeBy

CONFIG = {"steps": 3, "model": {"width": 64}, "out": None}


def begun(out: str | Path | None, **made: Any) -> runs.Run:
    """Open a run whose folder must not exist yet, or be without a manifest."""
    before = manifests()
    run = runs.open_run(out, **made)
    assert (run.path / "manifest.json").resolve() not in before
    return run


def resumed(out: str | Path | None, **made: Any) -> runs.Run:
    """Open a run that must exist, and whose manifest must stay as it is."""
    before = manifests()
    run = runs.open_run(out, **made)
    file = (run.path / "manifest.json").resolve()
    assert before.get(file) == file.read_bytes()
    return run


def manifests() -> dict[Path, bytes]:
    """The manifests of all runs in the current folder."""
    return {file.resolve(): file.read_bytes() for file in Path().rglob("manifest.json")}


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_folder_is_named_by_what_makes_the_run():
    run = begun(None, job="align", config=CONFIG)
    assert run.path == Path("runs") / f"align-{run.hash[:10]}"
    assert not run.done
    assert json.loads((run.path / "config.json").read_text()) == CONFIG
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["job"] == "align"
    assert manifest["status"] == "running"
    assert manifest["hash"] == run.hash
    assert set(runs.PACKAGES) == set(manifest["packages"])


def test_where_and_how_do_not_enter_the_hash_but_what_does():
    run = runs.open_run(None, job="align", config=CONFIG)
    same = runs.open_run(
        "elsewhere", job="align", config=MadeBy(identity={**CONFIG, "out": "elsewhere"}, runtime={"fleets": 9})
    )
    assert same.hash == run.hash
    for config, job in (
        ({**CONFIG, "steps": 4}, "align"),
        ({**CONFIG, "model": {"width": 65}}, "align"),
        (CONFIG, "x"),
    ):
        assert runs.open_run(None, job=job, config=config).hash != run.hash


def test_the_same_command_goes_on_and_then_does_nothing():
    first = runs.open_run(None, job="align", config=CONFIG)
    again = resumed(None, job="align", config=MadeBy(identity=CONFIG, runtime={"fleets": 5}))
    assert again.path == first.path
    assert not again.done
    runs.annotate(again, mlflow_run_id="abc")
    runs.finish(again, steps_done=3)
    manifest = runs.require_done(again.path, job="align")
    assert (manifest["mlflow_run_id"], manifest["steps_done"], manifest["status"]) == ("abc", 3, "done")
    assert runs.open_run(None, job="align", config=CONFIG).done


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", ".manifest.json.tmp"), (".config.json.tmp",)])
def test_a_run_killed_before_its_manifest_begins_again(left):
    Path("r").mkdir()
    for name in left:
        (Path("r") / name).write_text("{")
    run = begun("r", job="align", config=CONFIG)
    assert runs.read_json(run.path / "config.json") == CONFIG


def test_another_run_is_refused_and_each_difference_named():
    runs.open_run("r", job="align", config=CONFIG)
    new = MadeBy(identity={**CONFIG, "steps": 5, "model": {"width": 65}, "out": "r"}, runtime={"fleets": 3})
    with pytest.raises(ConfigError) as caught:
        runs.open_run("r", job="align", config=new)
    assert str(caught.value) == (
        "r holds another run (align):\n  model.width: 64 before, 65 now\n  steps: 3 before, 5 now\n"
        "Name another folder with --out, or remove this one."
    )


def test_a_folder_of_something_else_is_refused():
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"mine exists and is not a run folder. Name another folder with --out"):
        runs.open_run("mine", job="align", config=CONFIG)
    assert os.listdir("mine") == ["thesis.tex"]
    with pytest.raises(ConfigError, match="is not a run folder"):
        runs.open_run("mine/thesis.tex", job="align", config=CONFIG)


def test_parents_are_part_of_what_makes_a_run():
    first = runs.open_run("p1", job="pretrain", config={"steps": 1})
    second = runs.open_run("p2", job="pretrain", config={"steps": 2})
    child = runs.open_run("c", job="align", config=CONFIG, parents={"init": "p1"})
    assert runs.read_json(child.path / "manifest.json")["parents"] == {"init": {"path": "p1", "hash": first.hash}}
    assert child.hash != runs.open_run(None, job="align", config=CONFIG, parents={"init": "p2"}).hash
    difference = rf"init: p1 as it was \({first.hash}\) before, p2 \({second.hash}\) now"
    with pytest.raises(ConfigError, match=rf"^c holds another run \(align\):\n  {difference}\nName"):
        runs.open_run("c", job="align", config=CONFIG, parents={"init": second.path})


def test_a_data_set_can_be_a_parent():
    Path("d/meta").mkdir(parents=True)
    Path("d/meta/tap_ray.json").write_text('{"hash": "ff"}')
    hashes = []
    for episodes in (3, 3, 4):
        Path("d/meta/info.json").write_text(f'{{"total_episodes": {episodes}}}')
        hashes.append(runs.hash_of("d"))
    assert hashes[0] == hashes[1] != hashes[2]  # a dataset that has grown is another parent


def write_dataset(folder: str, *, episodes: int) -> None:
    Path(folder, "meta").mkdir(parents=True, exist_ok=True)
    Path(folder, "meta/tap_ray.json").write_text('{"hash": "ff"}')
    Path(folder, "meta/info.json").write_text(json.dumps({"total_episodes": episodes}))


def test_a_run_on_the_first_episodes_of_a_dataset_stays_the_same_when_the_dataset_grows():
    write_dataset("d", episodes=8)
    first, parents = MadeBy(identity=CONFIG, episodes={"data": 8}), {"data": "d"}
    run = runs.open_run(None, job="pretrain", config=first, parents=parents)
    assert run.hash == runs.open_run("as before", job="pretrain", config=CONFIG, parents=parents).hash
    expected = {"data": {"path": "d", "hash": runs.hash_of("d"), "episodes": 8}}
    assert runs.read_json(run.path / "manifest.json")["parents"] == expected

    write_dataset("d", episodes=20)
    again = resumed(None, job="pretrain", config=first, parents=parents)
    assert again.path == run.path
    resumed(run.path, job="pretrain", config=first, parents=parents)
    more = MadeBy(identity=CONFIG, episodes={"data": 9})
    begun(None, job="pretrain", config=more, parents=parents)
    everything = runs.open_run(None, job="pretrain", config=CONFIG, parents=parents)
    assert everything.hash not in (run.hash, again.hash)


def test_a_run_on_the_first_episodes_that_was_named_by_the_whole_dataset_is_found_again():
    """As runs were until only the episodes that they use counted."""
    write_dataset("d", episodes=20)
    old = runs.open_run(None, job="pretrain", config=CONFIG, parents={"data": "d"})
    now = MadeBy(identity=CONFIG, episodes={"data": 8})
    assert runs.folder_of(Path("runs"), job="pretrain", config=now, parents={"data": "d"}) == old.path
    assert resumed(None, job="pretrain", config=now, parents={"data": "d"}).path == old.path


def test_a_missing_parent_is_an_error_before_anything_is_made():
    with pytest.raises(CheckpointError, match=r"^nowhere does not exist. Give a run folder or a dataset"):
        runs.open_run("c", job="align", config=CONFIG, parents={"init": "nowhere"})
    assert not Path("c").exists()
    Path("empty").mkdir()
    with pytest.raises(CheckpointError, match=r"^empty is neither a run folder nor a dataset of this project"):
        runs.hash_of("empty")


def test_only_a_finished_run_of_the_right_job_will_do():
    run = runs.open_run("r", job="align", config=CONFIG)
    with pytest.raises(CheckpointError, match=r"r has not finished. Run its command again"):
        runs.require_done("r", job="align")
    runs.finish(run)
    with pytest.raises(CheckpointError, match="r is a run of 'align'; a run of 'pretrain' is needed here"):
        runs.require_done("r", job="pretrain")


def test_a_reader_sees_the_old_file_or_the_new_one(monkeypatch):
    path = Path("a.json")
    runs.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=re.escape("Cannot write a.json: No space left on device. Free some space")):
        runs.write_json(path, {"a": 2})
    assert runs.read_json(path) == {"a": 1}
    assert os.listdir() == ["a.json"]


def test_a_run_folder_that_cannot_be_made():
    Path("file").write_text("")
    with pytest.raises(
        StorageError, match=r"Cannot create file/run: Not a directory\. .* name another folder with --out"
    ):
        runs.open_run("file/run", job="align", config=CONFIG)


def test_json_that_is_missing_or_cut_off():
    with pytest.raises(CheckpointError, match=r"^a.json is missing\."):
        runs.read_json(Path("a.json"))
    Path("a.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"a.json is not valid JSON \(truncated\?\)"):
        runs.read_json(Path("a.json"))


def test_where_a_run_will_lie(tmp_path):
    run = runs.open_run(None, job="align", config=MadeBy(identity={"lr": 1, "out": "x"}, runtime={"workers": 2}))
    assert runs.folder_of(Path("runs"), job="align", config={"lr": 1}) == run.path
    assert not runs.is_done(run.path)
    runs.finish(run)
    assert runs.is_done(run.path)
    assert not runs.is_done(tmp_path / "nowhere")


def test_how_a_parents_path_is_spelt_does_not_matter(tmp_path):
    """Absolute, by way of a link, through "..", or moved: what lies there makes the run."""
    runs.finish(runs.open_run("p", job="pretrain", config={"steps": 1}))
    Path("link").symlink_to("p")
    Path("q").mkdir()
    spelt = ["p", str(tmp_path / "p"), f"file://{tmp_path}/p", "q/../p", "link"]
    found = {runs.open_run(None, job="align", config={"init": way}, parents={"init": way}).path for way in spelt}
    assert len(found) == 1
    Path("p").rename("moved")
    again = resumed(found.pop(), job="align", config={"init": "moved"}, parents={"init": "moved"})
    assert runs.open_run(None, job="align", config={"init": "scratch"}).path != again.path


def test_a_run_that_says_where_it_was_made_among_what_made_it_is_found_again():
    """Until manifests had a part of its own for that, such keys began with "_"."""
    settings = MadeBy(identity=CONFIG, runtime={"fleets": 9})
    run = runs.open_run("r", job="align", config=settings)
    manifest = runs.read_json(run.path / "manifest.json")
    del manifest["runtime"]
    runs.write_json(run.path / "manifest.json", {**manifest, "made_by": {**CONFIG, "_fleets": 2}})
    resumed("r", job="align", config=settings)
    with pytest.raises(ConfigError) as caught:
        runs.open_run("r", job="align", config={**CONFIG, "steps": 4})
    assert str(caught.value).splitlines()[1:-1] == ["  steps: 3 before, 4 now"]


def test_a_run_that_was_named_by_its_parents_paths_is_found_again():
    """As runs were until paths no longer counted."""
    runs.finish(runs.open_run("p", job="pretrain", config={"steps": 1}))
    config, parents = {"init": "p", "steps": 2}, {"init": "p"}
    old = digest({"job": "align", "config": config, "parents": {"init": runs.hash_of("p")}})
    folder = Path("runs") / f"align-{old[:10]}"
    folder.mkdir(parents=True)
    runs.write_json(folder / "config.json", config)
    runs.write_json(folder / "manifest.json", {"job": "align", "hash": old, "status": "done"})
    assert runs.folder_of(Path("runs"), job="align", config=config, parents=parents) == folder
    assert runs.open_run(None, job="align", config=config, parents=parents).done


def test_one_job_at_a_time_in_a_run_folder(monkeypatch):
    monkeypatch.setattr(runs, "LOCK_TIMEOUT_S", 0.0)
    with runs.entered("r", job="align", config=CONFIG) as run:
        message = (
            rf"^Another job works in r: process {os.getpid()} on .*\. Wait for it, or stop it and run again, or name"
        )
        with pytest.raises(CheckpointError, match=message), runs.entered("r", job="align", config=CONFIG):
            pass
        runs.finish(run)
    with (
        runs.entered("r", job="align", config=CONFIG) as first,
        runs.entered("r", job="align", config=CONFIG) as second,
    ):
        assert first.done
        assert second.done


def test_a_folder_of_something_else_is_not_even_locked():
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is not a run folder"), runs.entered("mine", job="align", config=CONFIG):
        pass
    assert os.listdir("mine") == ["thesis.tex"]


def test_json_that_lacks_a_key_names_the_file_and_the_key():
    Path("a.json").write_text('{"b": 1}')
    with pytest.raises(
        CheckpointError, match=r"^a\.json lacks a, c: it was not written by a job of tap_ray\. Give a run folder"
    ):
        runs.read_json(Path("a.json"), needs=("a", "b", "c"))
    Path("d/meta").mkdir(parents=True)
    Path("d/meta/tap_ray.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^d/meta/tap_ray\.json lacks hash: "):
        runs.hash_of("d")


def test_config_json_is_the_jobs_config_and_the_manifest_says_what_makes_the_run_and_by_which_command(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "-m", "jobs.compare", "s3://me:word@lab/a b"])
    job_config = compare.CompareConfig(runs=(Path("a"), Path("b")), out=Path("made"))
    run = runs.open_run(
        job_config.out, job="compare", config=MadeBy(identity={"kept": 1}, runtime={"runs": 2}), job_config=job_config
    )
    assert load(compare.CompareConfig, run.path / "config.json") == job_config
    manifest = runs.read_json(run.path / "manifest.json")
    assert manifest["made_by"] == {"kept": 1}
    assert manifest["runtime"] == {"runs": 2}
    assert manifest["command"] == "python -m jobs.compare 's3://lab/a b'"
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", manifest["git"])
    assert manifest["packages"]["numpy"] == np.__version__
    with pytest.raises(ConfigError, match="kept: 1 before, 2 now"):
        runs.open_run(job_config.out, job="compare", config={"kept": 2}, job_config=job_config)


def test_a_run_begun_under_former_names_is_taken_up():
    """The values of a run of commit b0be579, in part, and the hash that it had."""
    now = {"policy": {"n_action_steps": 2}, "align": {"load": "all"}, "workers": 2, "play": {"num_samples": 300}}
    before = {"policy": {"execute": 2}, "align": {"take": "all"}, "workers": 2, "play": {"num_samples": 300}}
    run = runs.open_run(None, job="align", config=before)
    assert resumed(None, job="align", config=now).path == run.path
    with pytest.raises(ConfigError, match=r"policy\.n_action_steps: 2 before, 3 now"):
        runs.open_run(run.path, job="align", config={**now, "policy": {"n_action_steps": 3}})


def test_a_run_begun_under_the_former_role_of_a_parent_is_taken_up(tmp_path: Path):
    """Live play's Stage 1 at commit d50d72c named its validation dataset "judged_on"."""
    play = runs.open_run(tmp_path / "play", job="collect_play", config={}).path
    run = runs.open_run(None, job="pretrain", config={"a": 1}, parents={"judged_on": play})
    again = resumed(None, job="pretrain", config={"a": 1}, parents={"evaluated_on": play})
    assert again.path == run.path
    with pytest.raises(ConfigError) as refused:
        runs.open_run(run.path, job="pretrain", config={"a": 2}, parents={"evaluated_on": play})
    assert "\n  a: 1 before, 2 now\nName another folder" in str(refused.value)
