"""Collection on real Ray processes with the real robot (small, without images): the same bytes, whatever happens."""

import contextlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray

import envs
from envs.kinematics.reachable import sample_poses
from envs.worlds import world_of
from jobs import collect_play
from jobs.collect_play import fleet
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.actor_pool import MAX_ITEM_DEATHS
from tap_ray.distributed.collect import Fleet, Pool, PoolOptions, Rounds, in_blocks, parts, run_attempts
from tap_ray.distributed.connect import connect, restrict_token_permissions, store_bytes
from tap_ray.distributed.record import pool_of
from tap_ray.errors import ConfigError
from tap_ray.play.collect import AttemptResult, collect
from tap_ray.play.novelty import RoundVisitCounts
from tap_ray.play.settings import PlayJobConfig
from tests.distributed import collect_child as child
from tests.distributed.kills import KILLS
from tests.distributed.nodes import meanwhile, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.local_ray]

EPISODES = max(48, 16 * KILLS)
"""Two fleets of one robot are given blocks of three batches or more. A life that is killed writes some episodes."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The dataset that one process without Ray makes."""
    path = tmp_path_factory.mktemp("data") / "expected"
    with DatasetWriter(path, child.HEADER) as writer:
        for episode in collect(
            child.PLAN,
            envs.make_vector,
            sample_poses,
            arms=envs.spec(child.PLAN.env).arms,
            num_episodes=EPISODES,
            num_robots=4,
        ):
            writer.append(episode)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same by two fleets."""
    path = tmp_path_factory.mktemp("data") / "whole"
    gather(path, fleets=2, robots=3)
    return path


def exported() -> dict[tuple[str, str], float]:
    """(name, run) -> value of our metrics, as Prometheus would fetch them from this node."""
    node = ray.nodes()[0]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^(ray_tap_\w+)\{.*\brun="([^"]*)".*\} ([0-9.e+-]+)$', text, re.M)
    return {(name, run): float(value) for name, run, value in found}


def test_what_was_collected_is_told_to_prometheus(whole):
    run = str(whole)
    frames = open_dataset(whole).lengths.sum()
    expected = {"ray_tap_episodes_total": EPISODES, "ray_tap_frames_total": frames, "ray_tap_writer_lag_episodes": 0}
    wait_for(lambda: expected.items() <= {name: value for (name, of), value in exported().items() if of == run}.items())


def bytes_of(path: Path, *, progress: bool = True) -> dict[str, bytes]:
    """Every file of a dataset; without the episode tables, which hold the progress, if it is not `progress`."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: data for name, data in files.items() if progress or not name.startswith("meta/episodes")}


def gather(path, fleets=2, robots=1, episodes=EPISODES):
    with DatasetWriter(path, child.HEADER) as writer:
        run = child.collection(writer, episodes)
        run.run(partial(fleet, child.PLAN, robots), Pool(fleets=fleets, robots=robots), progress=False)
        return run


def fleet_processes():
    found = []
    for process in psutil.Process().children(recursive=True):  # not those of another Ray on this machine
        with contextlib.suppress(psutil.Error):
            if "ray::Fleet" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_one_fleet_two_fleets_and_no_ray_give_the_same_bytes_in_one_life_or_two(tmp_path, expected, whole):
    gather(tmp_path / "parts", fleets=1, robots=1, episodes=10)
    run = gather(tmp_path / "parts")
    assert run.stats.episodes == EPISODES - 10
    assert bytes_of(tmp_path / "parts") == bytes_of(whole)
    assert bytes_of(whole, progress=False) == bytes_of(expected, progress=False)


def num_files(path):
    return len(list(path.rglob("data/*/*.parquet")))


@pytest.mark.slow
def test_killed_fleets_cost_nothing_but_time(tmp_path, expected):
    """KILLS at random moments: some while the fleets start, most while they play."""
    rng, killed = random.Random(0), []
    earlier = {process.pid for process in fleet_processes()}  # of the test before, about to end

    def kill_some():
        for number in range(KILLS):
            if number % 3:
                before = num_files(tmp_path)
                wait_for(lambda old=before: num_files(tmp_path) > old)
            time.sleep(rng.uniform(0, 0.1))
            victim = rng.choice(wait_for(lambda: [p for p in fleet_processes() if p.pid not in {*earlier, *killed}]))
            victim.kill()
            killed.append(victim.pid)

    with meanwhile(kill_some):
        for part in itertools.count():  # until there have been so many
            run = gather(tmp_path / f"{part}")
            assert bytes_of(tmp_path / f"{part}", progress=False) == bytes_of(expected, progress=False)
            assert not run.schedule.dropped
            if len(killed) == KILLS:
                break


@pytest.mark.slow
@pytest.mark.long_proof
def test_killed_drivers_cost_nothing_but_time(tmp_path, expected):
    """KILLS at random moments: some while the driver starts, most while it writes."""
    address = ray.get_runtime_context().gcs_address
    script = [sys.executable, child.__file__, address, str(tmp_path / "data"), "2", str(EPISODES)]
    rng = random.Random(0)
    for number in range(KILLS):
        before = num_files(tmp_path)
        job = subprocess.Popen(script, stderr=subprocess.DEVNULL)
        if number % 3:
            wait_for(lambda old=before, job=job: num_files(tmp_path) > old or job.poll() is not None)
        else:
            time.sleep(rng.uniform(0, 5.0))
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
    subprocess.run(script, check=True, stderr=subprocess.DEVNULL)
    assert bytes_of(tmp_path / "data", progress=False) == bytes_of(expected, progress=False)


class Deadly:
    """Takes its process down at attempt 3."""

    def __init__(self, memory):
        pass

    def run(self, attempts):
        if 3 in attempts:
            os._exit(1)
        return [AttemptResult(attempt=attempt, episode=None, reason=f"played in {os.getpid()}") for attempt in attempts]


@pytest.mark.slow
def test_an_attempt_that_kills_every_process_is_dropped_and_its_neighbors_are_not():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    outcomes = list(run_attempts(Deadly, [[0, 1], [2, 3], [4, 5]], Pool(fleets=2, robots=2)))
    reasons = {outcome.attempt: outcome.reason for outcome in outcomes}
    assert sorted(reasons) == list(range(6))
    assert reasons.pop(3).startswith(f"its process died {MAX_ITEM_DEATHS} times: The actor died unexpectedly")
    assert all(reason.startswith("played in") for reason in reasons.values())


class Patient:
    """Plays attempt 1 only once the driver has said that it has attempt 0, whose player says when it has played."""

    def __init__(self, folder: Path, memory) -> None:
        self.played, self.handed_over = folder / "played", folder / "handed_over"

    def run(self, attempts):
        if attempts == [0]:
            self.played.touch()
            return [AttemptResult(attempt=0, episode=None, reason="played")]
        wait_for(self.played.exists)  # however long the other fleet takes to start
        until = time.monotonic() + 60
        while not self.handed_over.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return [AttemptResult(attempt=1, episode=None, reason="played" if self.handed_over.exists() else "in vain")]


def test_a_block_is_handed_over_while_the_others_wait_for_what_it_brings(tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    reasons = {}
    for outcome in run_attempts(partial(Patient, tmp_path), [[0], [1]], Pool(fleets=2)):
        reasons[outcome.attempt] = outcome.reason
        (tmp_path / "handed_over").touch()
    assert reasons == {0: "played", 1: "played"}


def loaded_and_rss_mb(plan):
    player = fleet(plan, 1, None)
    player.run([0])
    return "torch" in sys.modules, psutil.Process().memory_info().rss / 1e6


def test_fleets_never_load_torch_and_stay_small():
    plan = child.PLAN
    torch, rss_mb = ray.get(ray.remote(loaded_and_rss_mb).remote(plan))
    assert not torch
    assert rss_mb < 400


class Remembers:
    """Plays nothing, but says what it is told of its round, which is half its attempt."""

    def __init__(self, memory):
        self.memory = memory

    def run(self, attempts):
        return [AttemptResult(attempt=a, episode=None, reason=str(self.memory(a // 2))) for a in attempts]


def test_a_block_is_played_only_once_the_memory_of_its_rounds_is_known():
    """Rounds of two attempts, each of which visits a cell of its own; round r remembers rounds 0 .. r - 2."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    memory, waiting, remembered = RoundVisitCounts(2), {}, {}
    for outcome in run_attempts(Remembers, [[n] for n in range(8)], Pool(fleets=2), PoolOptions(rounds=Rounds(memory))):
        waiting[outcome.attempt] = outcome
        while (due := memory.num_added) in waiting:
            remembered[due] = waiting.pop(due).reason
            memory.add({f"cell {due}": 1})
    seen = [str({f"cell {n}": 1 for n in range(num)}) for num in (0, 0, 2, 4)]
    assert remembered == {attempt: seen[attempt // 2] for attempt in range(8)}


def test_what_is_known_of_rounds():
    memory = RoundVisitCounts(2)
    rounds = Rounds(memory)
    assert [rounds.known(((n,),)) for n in range(6)] == [True, True, True, True, False, False]
    assert [rounds.known(((3, 4), (5,))), rounds.known(((0,), (3,)))] == [False, True]
    memory.add({})
    memory.add({})
    assert [rounds.known(((n,),)) for n in range(2, 8)] == [True, True, True, True, False, False]
    assert Rounds(None).known(((99,),))
    assert Rounds(None).references(((99,),)) == {}


def test_parts_of_a_block_are_single_attempts():
    assert parts(((0, 1), (2,))) == [((0,),), ((1,),), ((2,),)]
    assert parts(((5,),)) == []


def test_blocks_never_wait_for_themselves_and_leave_some_for_the_others():
    singles = [[attempt] for attempt in range(128)]
    assert {len(block) for block in in_blocks(singles, 2, 1, None)} == {8}
    assert {len(block) for block in in_blocks(singles, 2, 1, 8)} == {4}  # two fleets share a round of 8
    assert {len(block) for block in in_blocks(singles, 16, 1, 8)} == {1}
    gaps = [[3], [9], *([attempt] for attempt in range(16, 78))]  # 0 to 15 were played, but for two
    tuples = [tuple((n,) for n in range(first, first + 8)) for first in (16, 24)]
    assert in_blocks(gaps, 1, 1, 8)[:3] == [((3,), (9,)), *tuples]


class Mistaken:
    """Raises a user's mistake, in its constructor or when it runs."""

    def __init__(self, where, memory):
        self.where = where
        if where == "constructor":
            raise ConfigError("expected a, got b: do c")

    def run(self, attempts):
        raise ConfigError("expected a, got b: do c")


@pytest.mark.parametrize("where", ["constructor", "run"])
def test_a_users_mistake_comes_out_of_a_fleet_as_it_was_raised(where, capfd):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(ConfigError, match=r"^expected a, got b: do c$"):
        list(run_attempts(partial(Mistaken, where), [[0], [1]], Pool(fleets=1)))
    assert "Traceback" not in capfd.readouterr().err


def test_a_users_mistake_is_said_before_ray_starts_and_before_a_folder_is_made(tmp_path):
    for flags, message in (
        (
            ["--explorers.motion.bounds-low-m", "5", "5", "5", "--explorers.motion.bounds-high-m", "6", "6", "6"],
            "Only 0 of 3000 reachable poses of 'widowx' are between bounds_low_m (5.0, 5.0, 5.0)",
        ),
        (["--episodes", "0"], "--episodes must be at least 1; got 0."),
    ):
        command = [sys.executable, "-m", "jobs.collect_play", "--out", str(tmp_path / "play"), *flags]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert (completed.returncode, completed.stdout) == (2, "")
        assert completed.stderr.startswith("error: ")
        assert message in completed.stderr
        assert completed.stderr.count("\n") == 1
    assert not (tmp_path / "play").exists()


def test_a_fleet_pickles():
    made = ray.cloudpickle.loads(ray.cloudpickle.dumps(partial(fleet, child.PLAN, 2)))
    assert made(None).plan == child.PLAN
    assert Fleet


def test_tokens_are_on_and_nothing_listens_beyond_loopback():
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert (Path.home() / ".ray" / "auth_token").stat().st_size == 64
    assert 10**8 <= store_bytes() <= 2 * 10**9


def test_an_inner_connect_changes_nothing():
    with connect():
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_pool_and_address_errors():
    with pytest.raises(ConfigError, match="fleets must be at least 0 and robots at least 1; got 1 and 0"):
        Pool(fleets=1, robots=0)
    code = "from tap_ray.distributed.connect import connect\nwith connect('127.0.0.1:1'): pass"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert "ConfigError: No Ray cluster responds at '127.0.0.1:1'" in completed.stderr


def test_a_local_rays_token_is_its_owners_alone(tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    restrict_token_permissions(token)
    assert token.stat().st_mode & 0o777 == 0o600
    restrict_token_permissions(tmp_path / "none")


def test_memory_of_workers_comes_in_large_pages():
    """Linux marks memory that malloc asked large pages for with "hg", unless all memory is given such pages anyway."""

    @ray.remote(num_cpus=0)
    def memory_of_a_worker() -> tuple[str, str]:
        return os.environ["GLIBC_TUNABLES"], Path("/proc/self/smaps").read_text()

    tunables, maps = ray.get(memory_of_a_worker.remote())
    assert tunables == "glibc.malloc.hugetlb=1"
    flags = re.findall(r"\[heap\]\n(?:(?!VmFlags).*\n)*VmFlags: (.*)", maps)
    if "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        assert any("hg" in each.split() for each in flags), flags


@pytest.mark.parametrize(
    ("sim", "asked", "gpus"),
    [("pybullet", 0, 0), ("maniskill", 0, 0), ("maniskill_gpu", 0, 1), ("maniskill_gpu", 0.25, 0.25)],
)
def test_fleets_reserve_the_gpus_that_their_simulator_needs(sim, asked, gpus):
    assert pool_of(PlayJobConfig(sim=sim, gpus_per_fleet=asked), gpu=world_of("", "widowx", sim).gpu).gpus == gpus


def test_gpus_that_no_machine_has_are_reported_before_anything_is_written(tmp_path):
    config = PlayJobConfig(explorer="uniform", gpus_per_fleet=0.5, out=tmp_path / "play")
    with pytest.raises(
        ConfigError,
        match="^--gpus-per-fleet 0.5: 1 process with that many GPUs cannot be placed: the Ray cluster has 0 GPUs, at "
        r"most 0 on one machine, and no autoscaler\. Request fewer, a fraction of one \(e\.g\. 0\.25\), or a simulator "
        r"that needs no GPU \(--sim maniskill, --sim pybullet\)\.$",
    ):
        collect_play.main(config)
    assert not (tmp_path / "play").exists()
