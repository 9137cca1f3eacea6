"""Writes small RLDS datasets by TFDS's published schema, without TensorFlow.

The record's frame is tensorboardX's; the message is tap_ray's descriptor, which test_rlds.py holds against bytes that
TensorFlow wrote.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from tap_ray.importing.tfrecord import example_class

Steps = Mapping[str, Any]
"""Feature below "steps" -> (T, ...) numbers, (T, Y, X, 3) images, or T sentences."""


def write_rlds(folder: Path, episodes: Sequence[Steps], *, files: int = 2, split: str = "train") -> Path:
    """A dataset `folder`/1.0.0 with these episodes, their features as in the first."""
    here = folder / "1.0.0"
    here.mkdir(parents=True, exist_ok=True)
    (here / "features.json").write_text(json.dumps(schema(episodes[0])))
    parts = [episodes[number::files] for number in range(files)]
    for number, part in enumerate(parts):
        writer = RecordWriter(str(here / f"{folder.name}-{split}.tfrecord-{number:05d}-of-{files:05d}"))
        for steps in part:
            writer.write(serialized(steps))
        writer.close()
    info = {
        "fileFormat": "tfrecord",
        "name": folder.name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "shardLengths": [str(len(part)) for part in parts],
            }
        ],
        "version": "1.0.0",
    }
    (here / "dataset_info.json").write_text(json.dumps(info))
    return folder


def with_frame_of_rlds(steps: dict[str, Any]) -> dict[str, Any]:
    """The steps with RLDS's own columns."""
    number = len(next(iter(steps.values())))
    at = np.arange(number)
    flags = {"is_first": at == 0, "is_last": at == number - 1, "is_terminal": at == number - 1}
    return steps | flags | {"reward": (at == number - 1).astype(np.float32), "discount": np.ones(number, np.float32)}


def schema(steps: Steps) -> dict[str, Any]:
    """features.json, as `FeaturesDict.save_config` writes it."""
    inside = {name: leaf(values) for name, values in steps.items()}
    metadata = {"file_path": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}}
    nested = {"pythonClassName": DATASET, "sequence": {"feature": nest(inside), "length": "-1"}}
    return dictionary({"steps": nested, "episode_metadata": dictionary(metadata)})


DATASET = "tensorflow_datasets.core.features.dataset_feature.Dataset"


def dictionary(features: dict[str, Any]) -> dict[str, Any]:
    name = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} as dictionaries in dictionaries."""
    below: dict[str, Any] = {}
    for name, value in leaves.items():
        head, _, rest = name.partition("/")
        below.setdefault(head, {})[rest] = value
    return dictionary({head: part[""] if "" in part else nest(part) for head, part in below.items()})


def leaf(values: Any) -> dict[str, Any]:
    """What features.json says of one feature."""
    place = "tensorflow_datasets.core.features"
    if isinstance(values[0], str):
        return {"pythonClassName": f"{place}.text_feature.Text", "text": {}}
    array = np.asarray(values)
    dimensions = {"dimensions": [str(size) for size in array.shape[1:]]} if array.ndim > 1 else {}
    if array.ndim == 4:
        about = {"shape": dimensions, "dtype": "uint8", "encodingFormat": "jpeg"}
        return {"pythonClassName": f"{place}.image_feature.Image", "image": about}
    about = {"shape": dimensions, "dtype": str(array.dtype), "encoding": "none"}
    return {"pythonClassName": f"{place}.tensor_feature.Tensor", "tensor": about}


def serialized(steps: Steps) -> bytes:
    """An episode as a record's data."""
    example = example_class()()
    for name, values in steps.items():
        feature = example.features.feature[f"steps/{name}"]
        array = np.asarray(values) if not isinstance(values[0], str | bytes) else None
        if array is None:
            feature.bytes_list.value.extend([v if isinstance(v, bytes) else v.encode() for v in values])
        elif array.ndim == 4:
            feature.bytes_list.value.extend([jpeg(image) for image in array])
        elif array.dtype.kind == "f":
            feature.float_list.value.extend(array.ravel().tolist())
        else:
            feature.int64_list.value.extend(array.astype(int).ravel().tolist())
    example.features.feature["episode_metadata/file_path"].bytes_list.value.append(b"/raw/0.h5")
    return example.SerializeToString(deterministic=True)


def jpeg(rgb_YX3: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(rgb_YX3).save(data, "JPEG", quality=95)
    return data.getvalue()
