"""Cut Stage 1's crops out of a dataset of play: the object that is touched next, and the place where it is released.

They are written into the dataset's crops/ folder, and existing ones are not cut again. jobs.pretrain cuts missing ones.
"""

from pathlib import Path

import numpy as np

from tap_ray import storage
from tap_ray.dataset.crop_files import folder, read_crops
from tap_ray.dataset.crops import CROPS
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.settings import CropsConfig
from tap_ray.distributed.crops import cut_missing
from tap_ray.job import run_job


def main(config: CropsConfig) -> Path:
    """Cut what is missing, print how much of the play has crops; returns their folder."""
    path = storage.to_path(config.data)
    dataset = open_dataset(path if storage.is_remote(path) else path.resolve())
    cut_missing([dataset], config.ray_address)
    crops = read_crops(dataset, np.arange(len(dataset)), CROPS)
    led = sum(int((each.bout_T >= 0).sum()) for each in crops) / max(dataset.lengths.sum(), 1)
    bouts = sum(len(each) for each in crops)
    places = sum(int(each.has_place.sum()) for each in crops) / max(bouts, 1)
    print(
        f"{len(dataset)} episodes, {bouts} contacts with a crop of the object, {places:.0%} of them with a crop of "
        "the place as well."
    )
    print(f"{led:.0%} of the frames lead up to such a contact or belong to one.")
    return folder(dataset, CROPS)


if __name__ == "__main__":
    run_job(main, CropsConfig)
