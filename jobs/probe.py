"""Check a Stage 1 run: its held-out metrics against those that Stage 2 needs, and linear probes of its features."""

from pathlib import Path

from tap_ray import runs
from tap_ray.dataset.reader import open_dataset
from tap_ray.inspect.features import policy_features
from tap_ray.inspect.probes import probe, read_frames, table
from tap_ray.inspect.settings import ProbeConfig
from tap_ray.job import job_run, run_job
from tap_ray.models.build import load_config
from tap_ray.pretrain import health
from tap_ray.training.session import final_metrics


def main(config: ProbeConfig) -> Path:
    """Print held-out R^2 of each position, for the policy and for its network with fresh weights; write probe.json."""
    data = read_frames(open_dataset(config.data), num_episodes=config.episodes, every=config.every)
    parents: dict[str, Path | str] = {"policy": config.policy, "data": config.data}
    has_keypoints = not load_config(config.policy / "final").vlm.pretrained
    alone = data.cameras if has_keypoints and len(data.cameras) > 1 else ()
    with job_run("probe", config, parents=parents, rewrites=True) as run:
        scores = {
            f"{weights}, {camera}" if camera else weights: probe(
                policy_features(config.policy, data, fresh=weights != "trained", camera=camera), data
            )
            for weights in ("trained", "fresh weights")
            for camera in ("", *alone)
        }
        runs.write_json(run.path / "probe.json", scores)
        for target, score in scores["trained"].items():
            run.log({f"probe/{target}_{axis}_r2": score[axis] for axis in "xyz" if axis in score})
        run.artifact("probe.json")
    metrics = final_metrics(config.policy)
    known = {name: value for name, value in metrics.items() if "/r2_" in name}
    if known:
        print("held-out R^2 during training: " + ", ".join(f"{n} {v:.2f}" for n, v in sorted(known.items())))
    if readiness := health.readiness(metrics):
        print(readiness)
    print(f"held-out R^2 of a linear probe, {len(data.rgb)} frames (-: no motion along this axis)")
    print(table(scores))
    return run.path


if __name__ == "__main__":
    run_job(main, ProbeConfig)
