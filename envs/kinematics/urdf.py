"""Provides the URDF of each robot. Arms of pybullet_data get our gripper and simple meshes; the files are made once,
then cached.

PyBullet's software renderer takes time for every triangle (a Panda's meshes take 14 times a WidowX of boxes). Each
link's mesh is therefore replaced by the convex hull of its outermost points in some directions; kinematics, masses and
limits stay those of the source. As with the WidowX, only the gripper collides.
"""

import hashlib
import os
import shutil
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from envs.robots import ASSETS, ArmModel, Gripper, PyBulletDataArm
from tap_ray.errors import StorageError

DIRECTIONS = 48
"""Number of directions in which the outermost points of a mesh are kept: a hull has at most 92 triangles."""

LEFT_RGB, RIGHT_RGB = (0.95, 0.20, 0.75), (0.10, 0.85, 0.90)
"""Colors of the fingers, as on the WidowX: no object has these colors, and they differ."""


def urdf_of(model: ArmModel) -> Path:
    """Path of the robot's URDF, which is made now if this machine has none yet.

    Raises:
        StorageError: the cache cannot be written.
    """
    if model.data_arm is None or model.gripper is None:
        return ASSETS / model.urdf
    import pybullet_data

    source = Path(pybullet_data.getDataPath()) / model.urdf
    maker, about = Path(__file__).read_bytes(), f"{model.data_arm} {model.gripper}".encode()
    name = f"{model.name}-{hashlib.sha256(maker + about + source.read_bytes()).hexdigest()[:12]}"
    folder = cache() / name
    if not (folder / "robot.urdf").is_file():
        _make(source, model.data_arm, model.gripper, folder)
    return folder / "robot.urdf"


def cache() -> Path:
    """Folder of files that are made once on a machine: $XDG_CACHE_HOME/tap_ray/robots."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tap_ray" / "robots"


def _make(source: Path, arm: PyBulletDataArm, gripper: Gripper, folder: Path) -> None:
    """Make the folder under a temporary name and move it into place: several processes may do so at the same time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        _write(source, arm, gripper, beside)
        try:
            beside.rename(folder)
        except OSError:  # another process was faster, with the same bytes
            shutil.rmtree(beside)
            if not (folder / "robot.urdf").is_file():
                raise
    except OSError as error:
        raise StorageError(
            f"Cannot write {folder}: {error.strerror}. Free some space, or set XDG_CACHE_HOME to a writable folder."
        ) from None


def _write(source: Path, arm: PyBulletDataArm, gripper: Gripper, folder: Path) -> None:
    robot = ElementTree.parse(source).getroot()
    links = {link.get("name", ""): link for link in robot.findall("link")}
    kept = _from_base(robot, arm.flange)
    made = Element("robot", name=robot.get("name", ""))
    for number, name in enumerate(kept):
        made.append(_light(links[name], source.parent, arm.rgb[number % len(arm.rgb)], folder))
    for joint in robot.findall("joint"):
        if joint.find("child").get("link") in kept:  # type: ignore[union-attr]
            made.append(joint)
    _add_gripper(made, arm, gripper)
    ElementTree.indent(made)
    ElementTree.ElementTree(made).write(folder / "robot.urdf")


def _from_base(robot: Element, flange: str) -> list[str]:
    """Names of the links from the base to the flange."""
    parent = {
        joint.find("child").get("link"): joint.find("parent").get("link")  # type: ignore[union-attr]
        for joint in robot.findall("joint")
    }
    names: list[str] = []
    link: str | None = flange
    while link is not None:
        names.insert(0, link)
        link = parent.get(link)
    return names


def _light(link: Element, meshes: Path, rgb: tuple[float, float, float], folder: Path) -> Element:
    """The link with hulls for meshes, in one color, without contact."""
    made = Element("link", name=link.get("name", ""))
    for part in link:
        if part.tag == "inertial":
            made.append(part)
        if part.tag == "visual":
            mesh = part.find("geometry/mesh")
            assert mesh is not None, "borrowed arms are drawn by meshes"
            file = f"{link.get('name')}-{len(made)}.obj"
            _hull(meshes / mesh.get("filename", "").removeprefix("package://"), folder / file)
            visual = SubElement(made, "visual")
            if (place := part.find("origin")) is not None:
                visual.append(place)
            SubElement(SubElement(visual, "geometry"), "mesh", filename=file)
            _color(visual, rgb)
    return made


def _hull(mesh: Path, file: Path) -> None:
    """The convex hull of a mesh's outermost points."""
    import trimesh

    points_V3 = np.asarray(trimesh.load(mesh, force="mesh", skip_materials=True).vertices)  # type: ignore[attr-defined]
    outermost = np.unique((points_V3 @ _directions().T).argmax(axis=0))
    trimesh.convex.convex_hull(points_V3[outermost]).export(file)


def _directions() -> np.ndarray:
    """(DIRECTIONS, 3) unit vectors spread evenly over the sphere (Fibonacci lattice)."""
    number = np.arange(DIRECTIONS)
    z = 1 - (2 * number + 1) / DIRECTIONS
    angle = number * np.pi * (3 - 5**0.5)
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def _add_gripper(robot: Element, arm: PyBulletDataArm, gripper: Gripper) -> None:
    """Add a palm and two flat fingers to the flange, with frames as on the WidowX: x out of the gripper, y to the
    left."""
    _joint(
        robot, "gripper", "fixed", (arm.flange, "gripper_link"), (0, 0, 0), rpy=f"0 {-np.pi / 2} {arm.gripper_yaw_rad}"
    )
    palm = _part(robot, "gripper_link", 0.5)
    _box(palm, gripper.palm_m, (gripper.palm_m[0] / 2, 0, 0), (0.15, 0.15, 0.16), solid=True)
    _box(palm, (0.03, 0.035, 0.012), (0.02, 0.3 * gripper.palm_m[1], gripper.palm_m[2] / 2 + 0.004), LEFT_RGB)
    _joint(robot, "ee", "fixed", ("gripper_link", "ee_link"), (gripper.tool_x_m, 0, 0))
    _part(robot, "ee_link", 0.001)
    for name, side, rgb in (("left_finger", 1, LEFT_RGB), ("right_finger", -1, RIGHT_RGB)):
        joint = _joint(robot, name, "prismatic", ("gripper_link", f"{name}_link"), (gripper.tool_x_m, 0, 0))
        SubElement(joint, "axis", xyz=_words((0, side, 0)))
        SubElement(joint, "limit", lower="0", upper=str(gripper.open_m), effort=str(gripper.force_n), velocity="1")
        finger = _part(robot, f"{name}_link", 0.03)
        at = (-gripper.finger_m[0] / 2 + 0.0085, side * gripper.finger_m[1] / 2, 0)
        _box(finger, gripper.finger_m, at, rgb, solid=True)


def _joint(
    robot: Element,
    name: str,
    kind: str,
    links: tuple[str, str],
    at_m: tuple[float, ...],
    *,
    rpy: str = "0 0 0",
) -> Element:
    """Add a joint from the first link to the second."""
    parent, child = links
    joint = SubElement(robot, "joint", name=name, type=kind)
    SubElement(joint, "parent", link=parent)
    SubElement(joint, "child", link=child)
    SubElement(joint, "origin", xyz=_words(at_m), rpy=rpy)
    return joint


def _part(robot: Element, name: str, mass_kg: float) -> Element:
    link = SubElement(robot, "link", name=name)
    inertial = SubElement(link, "inertial")
    SubElement(inertial, "mass", value=str(mass_kg))
    moment = str(mass_kg * 1e-3)  # inertia of a body of a few centimeters
    SubElement(inertial, "inertia", ixx=moment, iyy=moment, izz=moment, ixy="0", ixz="0", iyz="0")
    return link


def _box(
    link: Element, size_m: tuple[float, ...], at_m: tuple[float, ...], rgb: tuple[float, ...], *, solid: bool = False
) -> None:
    for kind in ("visual", "collision") if solid else ("visual",):
        element = SubElement(link, kind)
        SubElement(element, "origin", xyz=_words(at_m))
        SubElement(SubElement(element, "geometry"), "box", size=_words(size_m))
        if kind == "visual":
            _color(element, rgb)


def _color(visual: Element, rgb: tuple[float, ...]) -> None:
    material = SubElement(visual, "material", name="-".join(f"{part:g}" for part in rgb))
    SubElement(material, "color", rgba=_words((*rgb, 1)))


def _words(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
