"""The whole pipeline: play -> pretrain -> demonstrations -> align -> evaluate -> compare.

Six steps, each a function that reads folders and writes one. The defaults are small: about 8 minutes on two cores
(`make demo`); every step is also a job of its own (`python -m jobs.<verb> --help`).
"""

import time
from pathlib import Path

from jobs import align, collect_demos, collect_play, compare, evaluate, pretrain
from tap_ray.compare.report import REPORT
from tap_ray.distributed.connect import connect
from tap_ray.job import run_job
from tap_ray.models.policy import PolicyConfig
from tap_ray.play.settings import DemosJobConfig, PlayJobConfig
from tap_ray.settings import FROM_SCRATCH, SCRATCH, AlignJobConfig, PipelineConfig, PretrainConfig, WorkersConfig


def main(config: PipelineConfig) -> Path:
    """Run the six steps; returns the page that compares the policies."""
    out, seed, start = config.out, config.seed, time.perf_counter()
    workers = WorkersConfig(num_workers=config.num_workers)

    def step(number: int, title: str) -> None:
        print(f"\n== {number}/6 {title} ({time.perf_counter() - start:.0f} s)", flush=True)

    with connect(config.ray_address):
        step(1, "play: a scripted explorer moves the robots, without language")
        num = config.play_episodes
        play = collect_play.main(PlayJobConfig(episodes=num, seed=seed, out=out / "play"))
        step(2, "pretrain (Stage 1): go to an object, put it somewhere")
        train = config.training(config.pretrain_steps, windows=128)
        moves = pretrain.main(PretrainConfig(data=(str(play),), train=train, workers=workers, out=out / "pretrain"))
        step(3, "demonstrations: a scripted expert, with instructions")
        demos = collect_demos.main(DemosJobConfig(episodes=config.demos_per_task, seed=seed, out=out / "demos"))

        step(4, "align (Stage 2): follow instructions, on Stage 1's weights and from scratch")
        train = config.training(config.align_steps, windows=64)
        policies = {}
        for name, init, network in (("tap", str(moves), PolicyConfig()), ("scratch", SCRATCH, FROM_SCRATCH)):
            settings = AlignJobConfig(
                demos=demos, init=init, policy=network, train=train, workers=workers, out=out / name
            )
            policies[name] = str(align.main(settings))
        step(5, "evaluate: the same cells for every policy")
        results = [
            evaluate.main(
                evaluate.EvaluateConfig(policy=policy, name=name, episodes=config.episodes, out=out / f"eval-{name}")
            )
            for name, policy in policies.items()
        ]
        step(6, "compare")
        page = compare.main(compare.CompareConfig(runs=tuple(results), out=out / "compare")) / REPORT
    step(6, "done")
    return page


if __name__ == "__main__":
    run_job(main, PipelineConfig)
