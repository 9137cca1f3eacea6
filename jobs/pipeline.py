"""The whole pipeline: play -> pretrain -> demonstrations -> align -> evaluate -> compare.

Six stages, each a function that reads folders and writes one. The defaults are small enough for two cores in eight
minutes (`make demo`); every stage is also a job of its own (`python -m jobs.<verb> --help`).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import align, collect_demos, collect_play, compare, evaluate, pretrain
from tap_ray.compare.report import REPORT
from tap_ray.distributed.connect import connect
from tap_ray.job import run_job
from tap_ray.models.policy import PolicyConfig
from tap_ray.settings import SCRATCH, WorkersConfig
from tap_ray.training.loop import TrainConfig

PLAIN = PolicyConfig(glimpse_px=0, num_state=0)
"""What serves a policy from scratch best: few demonstrations learn the rest by heart (docs/results/turning.md)."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Sizes of the pipeline's stages."""

    play: int = 360
    """Episodes of play, each 12 s of robot time."""
    demos: int = 10
    """Demonstrations of each task."""
    pretrain_steps: int = 600
    """Optimizer steps of Stage 1, 128 windows each."""
    align_steps: int = 300
    """Optimizer steps of Stage 2, 64 windows each, the same for both policies."""
    episodes: int = 12
    """Cells of each task that a policy is judged on."""
    num_workers: int = 2
    """Processes that train at once and share each step's windows; one a CPU core at most."""
    seed: int = 0
    """Root of the seed tree."""
    out: Path = Path("demo")
    """Folder for all results. The same command resumes where it was interrupted."""
    ray_address: str | None = None
    """Ray cluster to join, e.g. "auto"; without it a local Ray starts and stops with the job."""


def main(config: PipelineConfig) -> Path:
    """Run the six stages; returns the page that compares the policies."""
    out, seed, start = config.out, config.seed, time.perf_counter()
    workers = WorkersConfig(num_workers=config.num_workers)

    def stage(number: int, what: str) -> None:
        print(f"\n== {number}/6 {what} ({time.perf_counter() - start:.0f} s)", flush=True)

    def learn(steps: int, windows: int) -> TrainConfig:
        share = math.ceil(windows / config.num_workers)
        return TrainConfig(steps=steps, batch_size=share, seed=seed, checkpoint_every=100, validate_every=100)

    with connect(config.ray_address):
        stage(1, "play: robots explore by themselves, without language")
        play = collect_play.main(
            collect_play.PlayJobConfig(explorer="contact", episodes=config.play, seed=seed, out=out / "play")
        )
        stage(2, "pretrain (Stage 1): go to an object, put it somewhere")
        moves = pretrain.main(
            pretrain.PretrainConfig(
                data=play, train=learn(config.pretrain_steps, 128), workers=workers, out=out / "pretrain"
            )
        )
        stage(3, "demonstrations: a scripted expert, with instructions")
        demos = collect_demos.main(collect_demos.DemosJobConfig(episodes=config.demos, seed=seed, out=out / "demos"))

        stage(4, "align (Stage 2): follow instructions, on Stage 1's weights and from scratch")
        policies = {
            name: align.main(
                align.AlignJobConfig(
                    demos=demos,
                    init=init,
                    policy=network,
                    train=learn(config.align_steps, 64),
                    workers=workers,
                    out=out / name,
                )
            )
            for name, init, network in (("tap", str(moves), PolicyConfig()), ("scratch", SCRATCH, PLAIN))
        }
        stage(5, "evaluate: the same cells for every policy")
        judged = [
            evaluate.main(
                evaluate.EvaluateConfig(policy=policy, name=name, episodes=config.episodes, out=out / f"judged-{name}")
            )
            for name, policy in (*((n, str(p)) for n, p in policies.items()), ("expert", "expert"))
        ]
        stage(6, "compare")
        page = compare.main(compare.Config(runs=tuple(judged), out=out / "compare")) / REPORT
    stage(6, "done")
    return page


if __name__ == "__main__":
    run_job(main, PipelineConfig)
