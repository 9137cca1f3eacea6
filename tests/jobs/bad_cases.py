"""The mistakes of tests/jobs/bad_input.md: what is spoilt, and the command that meets it. See bad_input.py."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file, save_file

from tap_ray import runs
from tap_ray.config import to_dict
from tap_ray.dataset import layout
from tap_ray.models.build import PolicyBundle, new_policy, save_bundle
from tap_ray.models.motion_prior import MotionPrior, PriorConfig
from tap_ray.models.prior_files import Source, TrainedPrior, save_prior
from tests.compare.evaluated_runs import TASKS, make_result
from tests.made_data import write_made_dataset
from tests.moving_square import SIZE, SPEC, square_stats
from tests.small import SMALL
from tests.untrained import untrained_run

DATA, EPISODES = layout.data_file(1), layout.episodes_file(0)
SENTENCES = ("go left", "go to the right")


def shop(folder: Path) -> Path:
    """Good things: play, demos (the made-up square), moves (Stage 1 on them), prior, tap (a WidowX's), evaluated."""
    write_made_dataset(folder / "play", num_episodes=20, tasks=("play",), crops=True)
    write_made_dataset(folder / "demos", num_episodes=20, tasks=SENTENCES)
    untrained_run(folder / "tap")
    opened = runs.open_run(folder / "moves", job="pretrain", config={})
    moves = PolicyBundle(
        network=new_policy(replace(SMALL, context=("crops",)), seed=0), spec=SPEC, norm=square_stats(), tokenizer=None
    )
    save_bundle(folder / "moves" / "final", moves)
    runs.finish(opened)
    opened = runs.open_run(folder / "prior", job="pretrain", config={"prior": True})
    source = Source(spec=SPEC, norm=square_stats(), weight=1.0)
    save_prior(
        folder / "prior" / "final", TrainedPrior(network=MotionPrior(PriorConfig(chunk=4, width=32)), sources=[source])
    )
    runs.finish(opened)
    make_result(folder / "evaluated", {TASKS[0]: "eeep", TASKS[1]: "e..."})
    small = {"policy": to_dict(SMALL), "windows": {"horizon": SMALL.chunk}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    (folder / "evaluated" / "manifest.json").write_text(json.dumps({"job": "evaluate", "hash": "1", "status": "done"}))
    return folder


Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One mistake."""

    name: str
    command: str
    """Run in the shop."""
    make: Make | None = None
    """Spoils something there first."""
    env: Mapping[str, str] = field(default_factory=dict)


def write(file: str, text: str) -> Make:
    def make(here: Path) -> None:
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).write_text(text)

    return make


def cut(file: str) -> Make:
    """Half of it is left; of JSON, whose half depends on what else is in it, a few bytes."""
    left = 9 if file.endswith(".json") else None
    return lambda here: (here / file).write_bytes(
        (here / file).read_bytes()[: left or (here / file).stat().st_size // 2]
    )


def remove(file: str) -> Make:
    return lambda here: (here / file).unlink() if (here / file).is_file() else shutil.rmtree(here / file)


def folder_instead(file: str) -> Make:
    """What cannot be read, for root as well: a folder where a file was."""

    def make(here: Path) -> None:
        (here / file).unlink()
        (here / file).mkdir()

    return make


def edit(file: str, **changes: Any) -> Make:
    """Change keys of a JSON file; None takes a key away."""

    def make(here: Path) -> None:
        values = json.loads((here / file).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
            if value is None:
                del inner[last]
        (here / file).write_text(json.dumps(values))

    return make


def both(*makes: Make) -> Make:
    return lambda here: [make(here) for make in makes]


def nan_in(column: str) -> Make:
    """A dataset in which one number of the last row group of a file is NaN."""

    def make(here: Path) -> None:
        with pq.ParquetFile(here / "demos" / DATA) as file:
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        at = groups[-1].schema.get_field_index(column)
        kind, flat = groups[-1].schema.types[at], np.array(groups[-1][column].combine_chunks().flatten())
        flat[3] = np.nan
        groups[-1] = groups[-1].set_column(
            at, groups[-1].schema.field(at), pa.FixedSizeListArray.from_arrays(flat, type=kind)
        )
        with pq.ParquetWriter(here / "demos" / DATA, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)

    return make


def weights(run: str, change: Callable[[dict[str, np.ndarray]], object]) -> Make:
    def make(here: Path) -> None:
        file = here / run / "final" / "model.safetensors"
        tensors = {name: value.copy() for name, value in load_file(file).items()}
        change(tensors)
        save_file(tensors, file)

    return make


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["context_in.weight"].flat[5] = np.nan


FLIPPED = "0 closed, 1 open"
EVALUATE = "python -m jobs.evaluate --policy"
PRETRAIN = "python -m jobs.pretrain --data"
PRIOR = "python -m jobs.pretrain_prior --data"
ALIGN = "python -m jobs.align --demos"
SERVE = "python -m jobs.serve --policy"
TINY_POLICY = f"--policy.image-size {SIZE}"


def smaller_eyes(here: Path) -> None:
    """A Stage 1 run for 32 px."""
    moves = PolicyBundle(
        network=new_policy(replace(SMALL, image_size=32, context=("crops",)), seed=0),
        spec=SPEC,
        norm=square_stats(),
        tokenizer=None,
    )
    save_bundle(here / "moves" / "final", moves)


COMMANDS = (
    Case("a flag that does not exist", "python -m jobs.collect_play --episode 5"),
    Case("a flag's value of the wrong type", f"{EVALUATE} random --episodes many"),
    Case("a flag that is missing", "python -m jobs.align --demos demos"),
    Case("no such robot", "python -m jobs.collect_play --robot widow"),
    Case("no such simulator", "python -m jobs.collect_play --sim bullet"),
    Case("no such explorer", "python -m jobs.collect_play --explorer curius"),
    Case("no such task", "python -m jobs.collect_demos --tasks put_spoon_on_towel"),
    Case("no such suite", f"{EVALUATE} random --suite tabeltop"),
    Case("no such scenario", f"{EVALUATE} random --scenario distractor"),
    Case("a suite in another simulator", f"{EVALUATE} random --suite simpler --sim pybullet"),
    Case("a robot that the simulator does not have", "python -m jobs.collect_play --sim maniskill --robot panda"),
    Case("no episodes to play", "python -m jobs.collect_play --episodes 0"),
    Case("fewer than no demonstrations", "python -m jobs.collect_demos --episodes -5"),
    Case("no cells to evaluate", f"{EVALUATE} random --episodes 0"),
    Case("an image without pixels", "python -m jobs.collect_play --image-size 0"),
    Case("a JPEG quality beyond the scale", "python -m jobs.collect_play --jpeg-quality 300"),
    Case("a fleet without robots", "python -m jobs.collect_play --robots-per-fleet 0"),
    Case("fewer than no fleets", "python -m jobs.collect_play --fleets -1"),
    Case("fewer than no fleets of an evaluation", f"{EVALUATE} random --fleets -1"),
    Case("fewer than no training steps", f"{PRETRAIN} play --steps -1 {TINY_POLICY}"),
    Case("training without workers", f"{PRETRAIN} play --num-workers 0 {TINY_POLICY}"),
    Case("more workers than there are cores", f"{PRETRAIN} play --num-workers 999 {TINY_POLICY}"),
    Case("neither a dataset nor live play", "python -m jobs.pretrain"),
    Case("a history without a prior", f"{ALIGN} demos --init scratch --history 4 {TINY_POLICY}"),
    Case("a weight that is no number", f"{PRIOR} play:much"),
    Case("a chain of no episodes", "python -m jobs.pipeline --play-episodes 0"),
    Case("no Ray at the address", f"{EVALUATE} random --episodes 1 --ray-address 127.0.0.1:1"),
    Case("no MLflow at the address", "python -m jobs.collect_play", env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}),
    Case("a result that is not to be overwritten", "python -m jobs.compare evaluated --out tap"),
    Case("a result where a file lies", "python -m jobs.compare evaluated --out taken/here", write("taken", "")),
    Case("nothing to compare", "python -m jobs.compare"),
    Case("arguments that the doctor does not know", "python -m tap_ray.doctor --all"),
)

CONFIGS = (
    Case("a key that does not exist", f"{EVALUATE} random --config bad.yaml", write("bad.yaml", "episode: 3\n")),
    Case("a value of the wrong type", f"{EVALUATE} random --config bad.yaml", write("bad.yaml", "episodes: many\n")),
    Case("a list instead of keys", f"{EVALUATE} random --config bad.yaml", write("bad.yaml", "- episodes\n- 3\n")),
    Case("what is not YAML", f"{EVALUATE} random --config bad.yaml", write("bad.yaml", "episodes: [3\n")),
    Case(
        "a file of other bytes",
        f"{EVALUATE} random --config bad.yaml",
        lambda here: (here / "bad.yaml").write_bytes(b"\xff\xfe\x00"),
    ),
    Case(
        "a nested key that does not exist",
        f"{PRETRAIN} play --config bad.yaml",
        write("bad.yaml", "train: {step: 3}\n"),
    ),
    Case(
        "a choice that does not exist",
        "python -m jobs.collect_play --config bad.yaml",
        write("bad.yaml", "explorer: wild\n"),
    ),
    Case("a file that is missing", f"{EVALUATE} random --config missing.yaml"),
    Case("a folder instead of a file", f"{EVALUATE} random --config demos"),
    Case("no file at all", f"{EVALUATE} random --config"),
)

DATA_SETS = (
    Case("missing", f"{PRETRAIN} nowhere"),
    Case("an empty folder", f"{PRETRAIN} empty", lambda here: (here / "empty").mkdir()),
    Case(
        "no episode yet",
        f"{PRETRAIN} demos",
        both(remove("demos/meta/episodes"), edit("demos/meta/info.json", total_episodes=0)),
    ),
    Case("another version of the format", f"{PRETRAIN} demos", edit("demos/meta/info.json", codebase_version="v2.1")),
    Case("a header of another version", f"{PRETRAIN} demos", edit("demos/meta/tap_ray.json", version=9)),
    Case("a truncated info.json", f"{PRETRAIN} demos", cut("demos/meta/info.json")),
    Case("info.json without a key", f"{PRETRAIN} demos", edit("demos/meta/info.json", features=None)),
    Case("info.json counts more than there is", f"{PRETRAIN} demos", edit("demos/meta/info.json", total_episodes=99)),
    Case("a truncated data file", f"{ALIGN} demos --init scratch {TINY_POLICY}", cut(f"demos/{DATA}")),
    Case("a missing data file", f"{ALIGN} demos --init scratch {TINY_POLICY}", remove(f"demos/{DATA}")),
    Case("an unreadable data file", f"{ALIGN} demos --init scratch {TINY_POLICY}", folder_instead(f"demos/{DATA}")),
    Case("a truncated episode table", f"{PRETRAIN} demos", cut(f"demos/{EPISODES}")),
    Case("NaN in an action", f"{ALIGN} demos --init scratch {TINY_POLICY}", nan_in(layout.ACTION)),
    Case("NaN in a state", f"{PRIOR} demos", nan_in(layout.STATE)),
    Case("statistics that are missing", f"{ALIGN} demos --init scratch {TINY_POLICY}", remove("demos/meta/stats.json")),
    Case("a spec of another version", f"{PRETRAIN} demos", edit("demos/meta/tap_ray.json", spec__action_unit="mm")),
    Case("a flipped gripper", f"{ALIGN} demos --init moves", edit("demos/meta/tap_ray.json", spec__gripper=FLIPPED)),
    Case("another robot's", f"{ALIGN} demos --init moves", edit("demos/meta/tap_ray.json", spec__robot="panda")),
    Case("play instead of demonstrations", f"{ALIGN} play --init scratch {TINY_POLICY}"),
    Case("images of another size than Stage 1's", f"{ALIGN} demos --init moves --config small.yaml", smaller_eyes),
    Case("images of another size than the probe's policy", "python -m jobs.probe --policy tap --data demos"),
    Case(
        "features that its header does not have",
        "python -m jobs.probe --policy moves --data play",
        edit("play/meta/info.json", features__action=None),
    ),
    Case("too few episodes to probe", "python -m jobs.probe --policy moves --data play --episodes 3"),
    Case("fewer episodes than asked for", f"{PRETRAIN} play --windows.num-episodes 500 {TINY_POLICY}"),
    Case("play without robot masks", f"{PRETRAIN} demos {TINY_POLICY}"),
    Case("nothing to verify", "python -m tap_ray.dataset.lerobot verify nowhere"),
    Case("NaN, verified", "python -m tap_ray.dataset.lerobot verify demos", nan_in(layout.ACTION)),
    Case("a dataset of other robots, made longer", "python -m jobs.collect_play --out demos"),
)

CHECKPOINTS = (
    Case("missing", f"{EVALUATE} runs/tap"),
    Case("a misspelt built-in policy", f"{EVALUATE} exprt"),
    Case("an empty folder", f"{EVALUATE} empty", lambda here: (here / "empty").mkdir()),
    Case("truncated weights", f"{EVALUATE} tap --image-size 32", cut("tap/final/model.safetensors")),
    Case("an empty weights file", f"{EVALUATE} tap --image-size 32", write("tap/final/model.safetensors", "")),
    Case("unreadable weights", f"{SERVE} tap", folder_instead("tap/final/model.safetensors")),
    Case("weights that are missing", f"{SERVE} tap", remove("tap/final/model.safetensors")),
    Case(
        "a tensor that is missing",
        f"{EVALUATE} tap --image-size 32",
        weights("tap", lambda t: t.pop("context_in.weight")),
    ),
    Case(
        "a tensor of another shape",
        f"{EVALUATE} tap --image-size 32",
        weights("tap", lambda t: t.update({"context_in.weight": t["context_in.weight"][:, :2]})),
    ),
    Case("NaN in the weights", f"{EVALUATE} tap --image-size 32", weights("tap", not_a_number)),
    Case("NaN in Stage 1's weights", f"{ALIGN} demos --init moves --config small.yaml", weights("moves", not_a_number)),
    Case("another version's config", f"{EVALUATE} tap --image-size 32", edit("tap/final/policy.json", depth=3)),
    Case("a truncated config", f"{EVALUATE} tap --image-size 32", cut("tap/final/policy.json")),
    Case("a spec of another version", f"{SERVE} tap", edit("tap/final/spec.json", gripper=None)),
    Case(
        "a policy with a flipped gripper",
        f"{EVALUATE} tap --image-size 32",
        edit("tap/final/spec.json", gripper=FLIPPED),
    ),
    Case("another robot's policy", f"{EVALUATE} tap --image-size 32 --robot panda"),
    Case("a policy for other images", f"{EVALUATE} tap"),
    Case("a tokenizer that is missing", f"{SERVE} tap", remove("tap/final/tokenizer.json")),
    Case("a broken tokenizer", f"{SERVE} tap", cut("tap/final/tokenizer.json")),
    Case("a tower's config that is missing", f"{SERVE} tap", remove("tap/final/vision/config.json")),
    Case("statistics that are truncated", f"{SERVE} tap", cut("tap/final/norm_stats.json")),
    Case("Stage 1 instead of Stage 2", f"{SERVE} moves"),
    Case("Stage 2 instead of Stage 1", f"{ALIGN} demos --init tap"),
    Case("a run that has not finished", f"{EVALUATE} tap --image-size 32", edit("tap/manifest.json", status="running")),
    Case("a broken manifest", f"{EVALUATE} tap", cut("tap/manifest.json")),
    Case("a manifest of something else", f"{EVALUATE} tap", write("tap/manifest.json", "[]")),
    Case("a policy instead of a prior", f"{ALIGN} demos --init scratch --prior moves"),
    Case(
        "a longer history than the prior's chunk",
        f"{ALIGN} demos --init scratch --prior prior --history 9 {TINY_POLICY}",
    ),
    Case("a truncated prior", f"{ALIGN} demos --init scratch --prior prior", cut("prior/final/model.safetensors")),
    Case(
        "a prior of another version",
        f"{ALIGN} demos --init scratch --prior prior",
        edit("prior/final/prior.json", latents=3),
    ),
    Case("nobody to look through", "python -m jobs.saliency --policy runs/nobody"),
    Case("a prior to look through", "python -m jobs.saliency --policy prior"),
    Case("results that are truncated", "python -m jobs.compare evaluated", cut("evaluated/results.json")),
    Case("episodes that are truncated", "python -m jobs.compare evaluated", cut("evaluated/episodes.parquet")),
    Case("results of another version", "python -m jobs.compare evaluated", edit("evaluated/results.json", tasks=None)),
    Case("neither results nor training", "python -m jobs.compare play"),
)

SERVING = (
    Case("a token that can be guessed", f"{SERVE} tap", env={"TAP_RAY_SERVE_TOKEN": "1234"}),
    Case(
        "a token's file that others can read",
        f"{SERVE} tap --host 0.0.0.0 --token-file token",
        both(write("token", "x" * 40), lambda here: (here / "token").chmod(0o644)),
    ),
    Case("a port beyond the last", f"{SERVE} tap --port 99999"),
    Case("a port that is taken", f"{SERVE} tap --port PORT"),
    Case(
        "an address of another machine",
        f"{SERVE} tap --host 192.0.2.77 --require-token --token-file token",
        both(write("token", "x" * 40), lambda here: (here / "token").chmod(0o600)),
    ),
    Case("no sessions", f"{SERVE} tap --sessions 0"),
    Case("no time for an answer", f"{SERVE} tap --deadline-s 0"),
    Case("a certificate without its key", f"{SERVE} tap --tls-cert cert.pem"),
    Case("a certificate that is none", f"{SERVE} tap --tls-cert cert.pem --tls-key cert.pem", write("cert.pem", "-")),
    Case("a certificate that is missing", f"{SERVE} tap --tls-cert cert.pem --tls-key key.pem"),
)

SWEEP = "python -m jobs.sweep sweep.yaml --data play --demos demos"
HALVED = "align: {train: {validate_every: 50}}"
SWEEPS = (
    Case("no file", SWEEP),
    Case("a key that does not exist", SWEEP, write("sweep.yaml", "budgets: {grid: [0, 20]}")),
    Case("a setting that its job does not have", SWEEP, write("sweep.yaml", "align: {train: {step: {grid: [1, 2]}}}")),
    Case("another verb", SWEEP, write("sweep.yaml", "budget: {gird: [0, 20]}")),
    Case("an empty grid", SWEEP, write("sweep.yaml", "budget: {grid: []}")),
    Case("a value twice", SWEEP, write("sweep.yaml", "seed: {grid: [0, 0]}")),
    Case("a range upside down", SWEEP, write("sweep.yaml", "align: {train: {lr: {loguniform: [1e-2, 1e-3]}}}")),
    Case("more draws than anything to draw", SWEEP, write("sweep.yaml", "num_samples: 3")),
    Case("a budget larger than the dataset", SWEEP, write("sweep.yaml", "budget: {grid: [0, 8000]}")),
    Case("a budget with nothing to evaluate on", SWEEP, write("sweep.yaml", "budget: {grid: [0, 5]}")),
    Case("trials evaluated differently", SWEEP, write("sweep.yaml", "evaluate: {episodes: {grid: [4, 8]}}")),
    Case("what the sweep fills in", SWEEP, write("sweep.yaml", "align: {init: tap}")),
    Case("halving by a metric that nothing logs", SWEEP, write("sweep.yaml", f"asha: {{metric: bc/r2}}\n{HALVED}")),
    Case("halving by a factor of one", SWEEP, write("sweep.yaml", f"asha: {{reduction_factor: 1}}\n{HALVED}")),
    Case("halving before anything is validated", SWEEP, write("sweep.yaml", "asha: {grace_steps: 100}")),
)

GROUPS = {
    "Commands": COMMANDS,
    "Configs": CONFIGS,
    "Datasets": DATA_SETS,
    "Checkpoints and results": CHECKPOINTS,
    "Serving": SERVING,
    "Sweeps": SWEEPS,
}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
