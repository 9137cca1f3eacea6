"""A cluster of several raylets: jobs go where their labels say, nodes die under them, nothing is lost or doubled."""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray.cloudpickle
import ray.data
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

import envs
from envs.kinematics.reachable import sample_poses
from jobs.collect_play import fleet
from tap_ray import runs
from tap_ray.dataset.windows import episode_batches
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed import connect as connecting
from tap_ray.distributed import live, placement, stream
from tap_ray.distributed.collect import Pool, run_attempts
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate
from tap_ray.distributed.stream import decoder_placement
from tap_ray.distributed.train import train
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.play.collect import AttemptResult, CollectPlan, collect
from tap_ray.rng import generator
from tap_ray.settings import WorkersConfig
from tap_ray.training import session
from tap_ray.training.progress import train_here
from tap_ray.types import EnvConfig, Shard, Window
from tests import line_world
from tests.distributed import collect_child as child
from tests.distributed import toy_player
from tests.distributed import toy_stages as stages
from tests.distributed import toy_training as toy
from tests.distributed.nodes import Nodes, meanwhile, nodes, wait_for, workers
from tests.distributed.toy_training import toy_task
from tests.line_world import Forward, line_failure_inputs, line_robots

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own log files of killed nodes
]
EPISODES = 32
LIVE_STEPS = 9
PROTOCOL = Protocol(tasks=("line",), env_version="1", episodes=24, max_steps=5)


@pytest.fixture(scope="module")
def cluster():
    for module in (toy, toy_player, stages, line_world, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)  # the workers need not find our tests
    with nodes() as made:
        for role in ("play", "play", "train"):
            made.add(role)
        with connect(made.address):
            yield made


def of_role(cluster: Nodes, role: str) -> list:
    return [node for node in cluster.live if node.role == role]


class HeldPlayer:
    """Robots that play the second half of the attempts only when the file is gone."""

    def __init__(self, hold: Path, memory) -> None:
        self.hold, self.player = hold, fleet(child.PLAN, 1, memory)

    def run(self, attempts):
        while max(attempts) >= EPISODES // 2 and self.hold.exists():
            time.sleep(0.02)
        return self.player.run(attempts)


@pytest.mark.long_proof
def test_play_goes_on_when_its_node_dies(cluster: Nodes, tmp_path: Path):
    with DatasetWriter(tmp_path / "expected", child.HEADER) as writer:
        for episode in collect(
            child.PLAN,
            envs.make_vector,
            sample_poses,
            arms=envs.spec(child.PLAN.env).arms,
            num_episodes=EPISODES,
            num_robots=4,
        ):
            writer.append(episode)
    seen: Counter[str] = Counter()
    hold = tmp_path / "hold"
    hold.touch()

    def kill_one() -> None:
        try:
            wait_for(lambda: list((tmp_path / "data").glob("data/*/*.parquet")))
            for node in cluster.live:
                seen[node.role] += len(workers(node, "ray::Fleet"))
            cluster.strike(next(node for node in of_role(cluster, "play") if workers(node, "ray::Fleet")))
        finally:
            hold.unlink()

    with DatasetWriter(tmp_path / "data", child.HEADER) as writer, meanwhile(kill_one):
        run = child.collection(writer, EPISODES)
        run.run(partial(HeldPlayer, hold), Pool(labels=("role=play",)), progress=False)

    assert seen["play"]
    assert not seen["train"]
    assert not run.schedule.dropped
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.parquet") if "episodes" not in p.parts}
        for root in (tmp_path / "data", tmp_path / "expected")
    ]
    assert files[0] == files[1]
    assert placement.spilled_bytes() == 0


@pytest.mark.long_proof
def test_training_goes_on_when_its_node_dies(cluster: Nodes, tmp_path: Path, toy_dataset: Path):
    """Another node with its label comes, as an autoscaler would bring it; the curve is the undisturbed one."""
    steps = 60
    train_here(toy_task(tmp_path / "undisturbed", toy_dataset, ray=False, steps=steps), progress=False)
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=steps, every=10)
    trained_on: list[str] = []
    hold = tmp_path / "hold"

    def kill_it() -> None:
        try:
            wait_for(lambda: len(curve(task.run)) > 10)
            trained_on.extend(node.role for node in cluster.live if workers(node, "RayTrainWorker"))
            cluster.kill(of_role(cluster, "train")[0])
            cluster.add("train")
        finally:
            hold.unlink()

    with meanwhile(kill_it):
        train(toy.held(task, hold), WorkersConfig(node_labels=("role=train",)), progress=False)

    assert trained_on == ["train"]
    assert curve(task.run) == curve(tmp_path / "undisturbed")


@pytest.mark.long_proof
def test_decoders_run_beside_their_trainer(cluster: Nodes, toy_dataset: Path):
    """Of four nodes, those of one trainer work on its own."""
    trainer = ray.remote(num_cpus=1, label_selector={"role": "train"})(decoded_on)
    trainers, decoders = ray.get(trainer.remote(toy_dataset))
    assert trainers == decoders == {of_role(cluster, "train")[0].node_id}


def decoded_on(data: Path) -> tuple[set[str], set[str]]:
    """Nodes of this process, and of the decoders of eight batches."""
    here = ray.get_runtime_context().get_node_id()
    places = ray.data.range(8, override_num_blocks=8).map_batches(
        lambda rows: {"node": [ray.get_runtime_context().get_node_id()]}, batch_size=None, **decoder_placement()
    )
    batches = stream.batches(data, toy.WINDOWS, seed=toy.SEED)
    assert next(batches).rgb.shape[0] == toy.WINDOWS.batch_size
    batches.close()
    return {here}, {row["node"] for row in places.take_all()}


@pytest.mark.long_proof
def test_training_saves_when_its_machine_is_announced_to_go(cluster: Nodes, tmp_path: Path, toy_dataset: Path):
    """No checkpoint is due before the end; one is made, and the machine's end does not count as a failure."""
    steps = 150
    train_here(toy_task(tmp_path / "undisturbed", toy_dataset, ray=False, steps=steps, every=steps), progress=False)
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=steps, every=steps, pause_s=0.1)
    saved: list[int] = []

    def announce_and_kill() -> None:
        wait_for(lambda: len(curve(task.run)) > 5)
        [node] = of_role(cluster, "train")
        deadline_ms = int(1000 * (time.time() + 60))
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = ray._private.worker.global_worker.gcs_client
        assert gcs.drain_node(node.node_id, reason, "the spot market wants it back", deadline_ms)[0]
        saved.append(wait_for(lambda: session.newest_step(task.run)))
        cluster.kill(node)
        cluster.add("train")

    with meanwhile(announce_and_kill):
        train(task, WorkersConfig(node_labels=("role=train",), max_failures=0), progress=False)

    assert 5 < saved[0] < steps
    assert curve(task.run) == curve(tmp_path / "undisturbed")


def fresh(shard: Shard) -> Iterator[Window]:
    """The windows of live play, by one process without Ray."""
    player = toy_player.ToyPlayer(LIVE_STEPS, ())
    for group in itertools.count():
        first = group * toy.WINDOWS.group_size
        episodes = live.played(player, range(first, first + toy.WINDOWS.group_size), 2)
        rng = generator(toy.SEED, "live", "group", group)
        yield from episode_batches(episodes, toy.WINDOWS, spec=toy_player.SPEC, rng=rng)


@pytest.mark.long_proof
def test_training_goes_on_when_a_node_of_its_live_play_dies(cluster: Nodes, tmp_path: Path, toy_dataset: Path):
    """Robots on some nodes play what a trainer on another learns from; the curve is that of one process."""
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=60, every=10)
    alone = replace(task, run=tmp_path / "alone", batches=fresh)
    train_here(alone, progress=False)
    play = live.LivePlay(
        plan=CollectPlan(env=EnvConfig(max_steps=LIVE_STEPS), explorer="mixed"),
        make_player=partial(toy_player.ToyPlayer, LIVE_STEPS, ()),
        spec=toy_player.SPEC,
        reserved=0,
        pool=Pool(fleets=2, robots=2, labels=("role=play",)),
    )
    ran_on: list[tuple[str, str]] = []
    hold = tmp_path / "hold"

    def kill_one() -> None:
        try:
            wait_for(lambda: len(curve(task.run)) > 10)
            for name in ("MapWorker", "RayTrainWorker"):
                ran_on.extend((name, node.role) for node in cluster.live if workers(node, name))
            cluster.kill(next(node for node in of_role(cluster, "play") if workers(node, "MapWorker")))
            cluster.add("play")
        finally:
            hold.unlink()

    with meanwhile(kill_one):
        batches = partial(live.batches, play, toy.WINDOWS, seed=toy.SEED)
        train(
            toy.held(replace(task, batches=batches), hold), WorkersConfig(node_labels=("role=train",)), progress=False
        )

    assert set(ran_on) == {("MapWorker", "play"), ("RayTrainWorker", "train")}
    assert curve(task.run) == curve(alone.run)


def curve(run: Path) -> list[tuple[float, float]]:
    lines = session.read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [(line["step"], line["toy/loss"]) for line in lines if "toy/loss" in line]


def held_robots(folder, scene, num):
    """Robots that begin, once two results are stored, only when the file is gone."""
    while len(stored_lines(folder)) >= 2 and (folder / "hold").exists():
        time.sleep(0.02)
    return line_robots(num, scene)


def forward(scene, num):
    return Forward()


def test_evaluation_goes_on_when_its_node_dies(cluster: Nodes, tmp_path: Path):
    """No cell is blamed for it."""
    (tmp_path / "hold").touch()

    def kill_one() -> None:
        try:
            wait_for(lambda: len(stored_lines(tmp_path)) >= 2)
            cluster.kill(next(node for node in of_role(cluster, "play") if workers(node, "Fleet")))
            cluster.add("play")
        finally:
            (tmp_path / "hold").unlink()

    make = {
        "make_vector": partial(held_robots, tmp_path),
        "make_policy": forward,
        "make_failure_inputs": line_failure_inputs,
    }
    config = FleetConfig(robots=2, labels=("role=play",))
    with meanwhile(kill_one):
        results = evaluate(PROTOCOL, **make, folder=tmp_path, config=config, progress=False)

    robots = EpisodeRunner(PROTOCOL, line_robots_of, forward, line_failure_inputs)
    expected = [result for cell in cells(PROTOCOL) for result in robots.run([cell]).results]
    assert [comparable(result) for result in results] == [comparable(result) for result in expected]
    assert len(stored_lines(tmp_path)) == len(expected)


def line_robots_of(scene, num):
    return line_robots(num, scene)


@pytest.mark.long_proof
def test_a_sweep_goes_on_when_a_node_dies(cluster: Nodes, tmp_path: Path, toy_dataset: Path, mlflow_uri: str):
    """The node on which a trial aligns; the table is that of each trial alone, without Ray."""
    store = tmp_path / "store"
    killed: list[str] = []
    hold = store / "hold-0.1"
    store.mkdir()
    hold.touch()

    def aligned() -> int:
        return max((len(session.read_metrics(file)) for file in store.glob("align-*/metrics.jsonl")), default=0)

    def kill_it() -> None:
        try:
            wait_for(lambda: aligned() > 5)
            node = next(node for node in cluster.live if workers(node, "RayTrainWorker"))
            killed.append(node.role)
            cluster.kill(node)
            cluster.add(node.role)
        finally:
            hold.unlink()

    with meanwhile(kill_it):
        folder = stages.main(stages.write_file(tmp_path / "sweep.yaml", toy_dataset, budget=0), store)

    assert len(killed) == 1
    table = runs.read_json(folder / "table.json")
    for seed, row in enumerate(table):
        learned, result = stages.alone(tmp_path / str(seed), toy_dataset, seed=seed)
        assert (row["state"], row["validation"], row["result"]) == ("done", learned, result)


def stored_lines(folder: Path) -> list[str]:
    file = folder / "episodes.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def comparable(result):
    return result.cell, result.partial_once, result.entire_once, result.num_steps, result.error


class Patient:
    """Robots that play until the file exists."""

    def __init__(self, until: Path, memory) -> None:
        self.until = until

    def run(self, attempts):
        while not self.until.exists():
            time.sleep(0.05)
        return [AttemptResult(attempt=attempt, episode=None, reason="played") for attempt in attempts]


@pytest.mark.long_proof
def test_play_and_training_on_one_node_never_wait_for_each_other(cluster: Nodes, tmp_path: Path, toy_dataset: Path):
    """Fleets hold all that they will ever hold while a training begins and ends beside them."""
    outcomes: list[AttemptResult] = []
    shared = ("role=play",)

    def collect_beside() -> None:
        batches = [[number] for number in range(8)]
        outcomes.extend(run_attempts(partial(Patient, tmp_path / "trained"), batches, Pool(labels=shared)))

    with meanwhile(collect_beside):
        try:
            wait_for(lambda: any(workers(node, "ray::Fleet") for node in cluster.live))
            task = toy_task(tmp_path / "run", toy_dataset, ray=True)
            last = train(task, WorkersConfig(node_labels=shared), progress=False)
        finally:
            (tmp_path / "trained").touch()
    assert last["step"] == 20
    assert sorted(outcome.attempt for outcome in outcomes) == list(range(8))


def test_labels_that_no_node_has(cluster: Nodes):
    with pytest.raises(
        ConfigError, match=r"No node .* role=paly, and the cluster has no autoscaler.*role=play, role=train"
    ):
        placement.selector(("role=paly",))
    with pytest.raises(ConfigError, match=r"--node-labels must be KEY=VALUE, e.g. role=play; got 'play'\."):
        placement.selector(("play",))
    assert placement.selector(()) == {}
    assert placement.share(2, {"role": "train"}) == 0.5


def test_a_job_says_what_was_spilled(cluster: Nodes, capsys: pytest.CaptureFixture[str]):
    """Nothing so far; then more than the head's store holds."""
    assert placement.spilled_bytes() == 0
    kept = [ray.put(np.zeros(60 * 10**6, np.uint8)) for _ in range(4)]
    connecting.warn_if_spilled(since=0)
    assert "object stores were full and wrote" in capsys.readouterr().out
    assert ray.get(kept[0]).nbytes == 60 * 10**6
