"""The whole machine in one read: play -> data set -> pretrain -> align -> evaluate -> compare.

Six stages, each a function that reads folders and writes one. The defaults are small enough for two cores in six
minutes (`make demo`); every stage is also a job of its own (`python -m jobs.<verb> --help`).
"""

import time
from dataclasses import dataclass
from pathlib import Path

from jobs import align, collect_demos, collect_play, compare, evaluate, pretrain
from tap_ray.compare.report import REPORT
from tap_ray.config import run_job
from tap_ray.distributed.connect import connect
from tap_ray.errors import ConfigError
from tap_ray.training.loop import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """How much of everything."""

    play: int = 200
    """Episodes of the WidowX's play, each 12 s of robot time."""
    other_play: int = 50
    """Episodes of the Panda's, for a motion prior of both robots."""
    demos: int = 30
    """Demonstrations of each task."""
    pretrain_steps: int = 400
    """Optimizer steps of Stage 1."""
    prior_steps: int = 320
    """Optimizer steps of the motion prior."""
    align_steps: int = 280
    """Optimizer steps of Stage 2, for each of the three policies."""
    episodes: int = 8
    """Cells of each task that a policy is judged on."""
    seed: int = 0
    """Root of the seed tree."""
    out: Path = Path("demo")
    """Folder for everything. The same command goes on where it was cut off."""
    ray_address: str | None = None
    """Ray cluster to join, e.g. "auto"; without it a local Ray starts and stops with the job."""


def main(config: ChainConfig) -> Path:
    """Run the six stages; returns the page that compares the policies."""
    for name, amount in vars(config).items():
        if isinstance(amount, int) and name != "seed" and amount < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is at least 1; got {amount}.")
    out, seed, start = config.out, config.seed, time.perf_counter()

    def stage(number: int, what: str) -> None:
        print(f"\n== {number}/6 {what} ({time.perf_counter() - start:.0f} s)", flush=True)

    def learn(steps: int, batch_size: int = 48) -> TrainConfig:
        return TrainConfig(steps=steps, batch_size=batch_size, seed=seed, checkpoint_every=200, validate_every=200)

    with connect(config.ray_address):
        stage(1, "play: robots explore by themselves, without words")
        play, other = (
            collect_play.main(collect_play.PlayJobConfig(robot=robot, episodes=episodes, seed=seed, out=out / name))
            for robot, episodes, name in (("widowx", config.play, "play"), ("panda", config.other_play, "play-panda"))
        )
        stage(2, "pretrain: which action led from one image to the next? And what is a motion, whoever makes it?")
        moves = pretrain.main(
            pretrain.PretrainConfig(data=play, train=learn(config.pretrain_steps), out=out / "pretrain")
        )
        prior = pretrain.prior(
            pretrain.PriorJobConfig(
                data=(str(play), str(other)), train=learn(config.prior_steps, 128), out=out / "motion-prior"
            )
        )
        stage(3, "demonstrations: an expert shows what words mean")
        demos = collect_demos.main(collect_demos.DemosJobConfig(episodes=config.demos, seed=seed, out=out / "demos"))

        stage(4, "align: now with words, on what Stage 1 learnt to see, on what it learnt to move, and from scratch")
        policies = {
            name: align.main(
                align.AlignJobConfig(
                    demos=demos, init=init, prior=head, train=learn(config.align_steps), out=out / name
                )
            )
            for name, init, head in (
                ("tap", str(moves), None),
                ("prior", align.SCRATCH, prior),
                ("scratch", align.SCRATCH, None),
            )
        }
        stage(5, "evaluate: the same cells for every policy")
        judged = [
            evaluate.main(
                evaluate.EvaluateConfig(policy=policy, name=name, episodes=config.episodes, out=out / f"judged-{name}")
            )
            for name, policy in (
                *((n, str(p)) for n, p in policies.items()),
                ("expert", "expert"),
                ("random", "random"),
            )
        ]
        stage(6, "compare")
        page = compare.main(compare.Config(runs=tuple(judged), out=out / "compare")) / REPORT
    stage(6, "done")
    return page


if __name__ == "__main__":
    run_job(main, ChainConfig)
