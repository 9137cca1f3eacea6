"""A collection job as a process of its own, so that tests can kill it: collect_child.py ADDRESS PATH FLEETS N."""

import sys
from functools import partial
from pathlib import Path

import envs
from jobs.collect_play import fleet
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import Collection, Pool
from tap_ray.distributed.connect import connect
from tap_ray.play.collect import CollectPlan, visits_of
from tap_ray.play.explorers import ExplorerConfig, MixedConfig
from tap_ray.play.novelty import RoundVisitCounts
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.play.schedule import Schedule
from tap_ray.types import EnvConfig

FAST = ExplorerConfig(safe_poses=SafePosesConfig(num_samples=300), mixed=MixedConfig(waypoint=1, curious=1))
PLAN = CollectPlan(
    env=EnvConfig(render=False, max_steps=10, image_size=16), explorer="mixed", explorers=FAST, round_episodes=8
)
SPEC = envs.spec(PLAN.env)
ARMS = SPEC.arms
HEADER = DatasetHeader(
    spec=SPEC, plan=PLAN.to_json(), image_size=(16, 16), num_objects=envs.NUM_SLOTS, episodes_per_file=4
)


def collection(writer: DatasetWriter, episodes: int) -> Collection:
    """Collection of PLAN into `writer`."""
    schedule = Schedule(num_tasks=1, episodes=episodes)
    memory = RoundVisitCounts(PLAN.round_episodes)
    return Collection(writer, schedule, memory=memory, visits_of=partial(visits_of, PLAN, arms=ARMS))


def main(address: str, path: Path, fleets: int, episodes: int) -> None:
    """Collect what is missing."""
    with connect(address), DatasetWriter(path, HEADER) as writer:
        collection(writer, episodes).run(partial(fleet, PLAN, 1), Pool(fleets=fleets, robots=1), progress=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
