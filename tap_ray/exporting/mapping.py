"""Writes the mapping of an export's columns, with which jobs.import_dataset can import it again."""

from itertools import groupby
from typing import Any

import yaml

from tap_ray.dataset.layout import ACTION, IMAGE, STATE, image_columns
from tap_ray.dataset.reader import DatasetInfo
from tap_ray.specs import EE_SLOTS, ONE_CAMERA, SIDES, Slot
from tap_ray.types import PLAY_TASK


def mapping_yaml(dataset: DatasetInfo) -> bytes:
    """A mapping with which importing the export gives this dataset again, except for masks and object poses."""
    spec = dataset.spec
    columns = dict(zip(spec.cameras, image_columns(spec), strict=True))
    values: dict[str, Any] = {
        "robot": spec.robot,
        **({"camera": IMAGE} if spec.cameras == ONE_CAMERA else {"cameras": columns}),
        "control_hz": spec.control_hz,
        "image_size": dataset.header.image_size[0],
        "state": _groups(spec.state, STATE, closed=0.0),
        "action": _groups(spec.action, ACTION, closed=-1.0),
    }
    if set(dataset.tasks) == {PLAY_TASK}:
        values["instruction"] = ""
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120).encode()


def _groups(slots: tuple[Slot, ...], column: str, closed: float) -> list[dict[str, Any]]:
    """Groups of slots: adjacent slots of the same unit, a rotation, or a gripper."""
    turning = {f"{side}{name}" for side in ("", *SIDES) for name in EE_SLOTS["delta_rot"]}

    def kind(numbered: tuple[int, Slot]) -> tuple[bool, bool, str, str]:
        slot = numbered[1]
        side = next((side for side in SIDES if slot.name.startswith(side)), "")
        return _is_gripper(slot), slot.name in turning, slot.unit.split()[0], side

    groups = []
    for (gripper, rotation, unit, _), members in groupby(enumerate(slots), key=kind):
        at, names = zip(*((n, slot.name) for n, slot in members), strict=True)
        group: dict[str, Any] = {"slots": list(names), "column": column, "at": list(at)}
        group |= {"unit": "gripper", "closed": closed, "open": 1.0} if gripper else {"unit": unit}
        groups.append(group | ({"rotation": "rotation_vector"} if rotation else {}))
    return groups


def _is_gripper(slot: Slot) -> bool:
    return slot.name.endswith(("gripper", "gripper_opening"))
