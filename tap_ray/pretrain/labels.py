"""Adds pseudo-labels to video: actions that a run of inverse dynamics predicts from the images.

The result is a new dataset with the images, states and other data of the video and the predicted actions. Each episode
is one step shorter (the last image has no next one). Its info.json has "pseudo_labels", with the run.

Source: VPT (arXiv 2206.11795) labels videos in this way; the network is Stage 1's of arXiv 2607.02466.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tap_ray import metrics, runs, storage
from tap_ray.dataset import layout
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.reader import DatasetInfo, open_dataset, read_episode
from tap_ray.dataset.statistics import image_stats
from tap_ray.dataset.windows import WindowConfig, split_episodes
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import ConfigError, DataError
from tap_ray.media.image import decode_frames
from tap_ray.models.build import PolicyBundle, load_bundle
from tap_ray.pretrain.settings import LabelConfig
from tap_ray.progress_bar import progress_bar
from tap_ray.specs import RobotSpec
from tap_ray.training.session import final_metrics
from tap_ray.types import Episode

BATCH = 256
"""Number of pairs of images per batch."""


class Labeler:
    """Applies inverse dynamics to whole episodes."""

    def __init__(self, bundle: PolicyBundle, where: Path) -> None:
        """
        Raises:
            ConfigError: the run was not trained with inverse dynamics.
        """
        if "goal" not in bundle.network.config.context:
            raise ConfigError(
                f"{where} was not trained on inverse dynamics, so it cannot predict the action between two images. "
                "Train a model that was: python -m jobs.pretrain --objective.next-object 0 "
                "--objective.inverse-dynamics 1."
            )
        self.spec, self._network = bundle.spec, bundle.network.eval()
        self.image_size = bundle.network.config.image_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network.to(self._device)

    @torch.inference_mode()
    def actions(self, rgb_TYX3: np.ndarray, extra_TVYX3: np.ndarray | None = None) -> np.ndarray:
        """(T - 1, A) float32, physical units and in range: from each image to the next; grippers are +1 or -1.

        `extra_TVYX3`: images of the other cameras.
        """
        parts = []
        for begin in range(0, len(rgb_TYX3) - 1, BATCH):
            batch: dict[str, torch.Tensor] = {}
            for name, images in (("rgb", rgb_TYX3), ("extra_rgb", extra_TVYX3)):
                if images is not None:
                    some = torch.from_numpy(images[begin : begin + BATCH + 1]).to(self._device)
                    batch |= {name: some[:-1], f"goal_{name}": some[1:]}
            out = self._network(batch)["action"]
            parts.append(self._network.action_scale.unnormalize(out)[:, 0].cpu().numpy())
        action = np.concatenate(parts).astype(np.float32)
        action[:, self.spec.grippers] = np.where(action[:, self.spec.grippers] >= 0, 1, -1)
        return np.clip(action, self.spec.action_low_A, self.spec.action_high_A)


def label(config: LabelConfig) -> Path:
    """Label what is missing and print the error of the labels if the true actions are known; returns the dataset.

    Raises:
        ConfigError, DataError: run and video do not fit each other, or the folder holds something else.
        StorageError: the disk refused; what was written before is whole.
    """
    run, dataset = storage.to_path(config.policy), open_dataset(config.data)
    manifest = runs.require_done(run, job="pretrain")
    labeler = Labeler(load_bundle(run / "final"), run)
    _require_same_robot(labeler, dataset, run)
    source = {"run": str(manifest["hash"]), "source": dataset.header.to_json()["hash"]}
    header = labeled_header(dataset.header, labeler.spec, source)
    with DatasetWriter(config.out, header) as writer:
        missing = range(writer.committed, len(dataset))
        for index in progress_bar(iterable=missing, unit="episode", desc="label"):
            writer.append(labeled(read_episode(dataset, index), labeler))
    facts = {"path": str(run), **source, "episodes": len(dataset)}
    _manifest(config, header, facts)
    print(f"{len(dataset)} episodes, {int((dataset.lengths - 1).sum())} actions were predicted by run {source['run']}.")
    if dataset.spec.action:
        print(error_text(config.out, dataset, held_out(manifest, config.data, dataset)))
    else:
        scores = [f"{name} {value:.2f}" for name, value in final_metrics(run).items() if "/r2_" in name]
        print(
            "The video has no actions, so the error of the predicted ones is unknown. On the held-out play of the run "
            "it was:"
        )
        print(f"  {', '.join(scores) or 'not logged'}")
    return storage.to_path(config.out)


def labeled_header(header: DatasetHeader, spec: RobotSpec, source: dict[str, str]) -> DatasetHeader:
    """The header of the dataset that labels are written into."""
    plan = {"kind": "pseudo_labels", "pseudo_labels": source, "of": header.plan}
    return replace(header, spec=replace(spec, state=header.spec.state), plan=plan)


def labeled(episode: Episode, labeler: Labeler) -> Episode:
    """An episode with predicted actions, one step shorter.

    Raises:
        DataError: it has only one image.
    """
    rgb, steps = decode_frames(episode.image_jpeg), len(episode.image_jpeg) - 1
    if steps < 1:
        raise DataError(f"Episode {episode.index} has only one image, so it has no action to predict. Omit it.")
    others = [decode_frames(files) for files in episode.extra_jpeg]
    return replace(
        episode,
        image_jpeg=episode.image_jpeg[:steps],
        extra_jpeg=[files[:steps] for files in episode.extra_jpeg],
        extra_stats=[image_stats(other[:steps]) for other in others],
        mask_png=None if episode.mask_png is None else episode.mask_png[:steps],
        state=episode.state[:steps],
        action=labeler.actions(rgb, np.stack(others, axis=1) if others else None),
        contact=episode.contact[:steps],
        object_pose=episode.object_pose[:steps],
        image_stats=image_stats(rgb[:steps]),
    )


def held_out(manifest: dict[str, Any], data: Path, dataset: DatasetInfo) -> Sequence[int]:
    """Episodes that the run was not trained on: all episodes of other datasets, and the held-out ones of its own."""
    parents = manifest.get("parents", {})
    if all(runs.hash_of(data, parent.get("episodes", 0)) != parent.get("hash") for parent in parents.values()):
        return range(len(dataset))
    windows = manifest.get("made_by", {}).get("windows", {})
    every = windows.get("holdout_every", WindowConfig().holdout_every)
    return [int(index) for index in split_episodes(dataset, replace(WindowConfig(), holdout_every=every))[1]]


def error_text(out: Path, dataset: DatasetInfo, episodes: Sequence[int]) -> str:
    """The error of the labels against the true actions of these episodes, as text."""
    if not len(episodes):
        return "No episode is held out from the run, so the error of the predicted actions is unknown."
    made = open_dataset(out)
    pairs = [[read_episode(of, index, [layout.ACTION]).action for of in (made, dataset)] for index in episodes]
    guess, truth = np.concatenate([a for a, _ in pairs]), np.concatenate([b[:-1] for _, b in pairs])
    spec = made.spec
    lines = [f"Compared with the true actions of {len(episodes)} episodes that the run was not trained on:"]
    r2 = metrics.r_squared(guess, truth)
    for n, slot in enumerate(spec.action):
        if n in spec.grippers:
            lines.append(f"  {slot.name:14} {metrics.gripper_accuracy(guess[:, n], truth[:, n]):6.1%} correct")
        else:
            error = float(np.abs(guess[:, n] - truth[:, n]).mean())
            lines.append(f"  {slot.name:14} R^2 {r2[n]:6.2f}, mean error {error:.4f} {slot.unit}")
    return "\n".join(lines)


def _require_same_robot(labeler: Labeler, dataset: DatasetInfo, run: Path) -> None:
    have, want, size = dataset.spec, labeler.spec, labeler.image_size
    wrong = [
        f"  {name}: {run} has {getattr(want, name)!r}, {dataset.path} has {getattr(have, name)!r}"
        for name in ("robot", "control_hz", "cameras")
        if getattr(have, name) != getattr(want, name)
    ]
    if have.action and have.action != want.action:
        wrong.append(f"  action: {_names(want)} and {_names(have)}, or other ranges")
    if dataset.header.image_size != (size, size):
        height, width = dataset.header.image_size
        wrong.append(f"  images: {size} x {size} px, and {width} x {height}")
    if wrong:
        raise ConfigError("The run and the video are not of the same robot:\n" + "\n".join(wrong))


def _names(spec: RobotSpec) -> str:
    return " ".join(slot.name for slot in spec.action)


def _manifest(config: LabelConfig, header: DatasetHeader, facts: dict[str, Any]) -> None:
    values = {"job": "label", "hash": header.to_json()["hash"], "status": "done", "parents": {}}
    sources = {"policy": str(config.policy), "data": str(config.data)}
    runs.write_json(
        storage.to_path(config.out) / "manifest.json",
        {**values, "config": sources, **runs.provenance(), "pseudo_labels": facts},
    )
