"""RLDS without TensorFlow: what TFDS writes is read, and what is damaged is named."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from tap_ray.errors import ConfigError, DataError
from tap_ray.importing import tfrecord
from tap_ray.importing.convert import ConvertOptions, episode_of
from tap_ray.importing.mapping import Mapping, Numbers, require_fits
from tap_ray.importing.rlds import RldsSource
from tap_ray.importing.settings import open_source
from tap_ray.media.image import decode_frames
from tests.importing.make_rlds import serialized, with_frame_of_rlds, write_rlds

CAMERA = "observation/image_0"


def steps_of(episode: int, number: int = 5) -> dict:
    at = np.arange(number)
    images = np.full((number, 24, 32, 3), 90, np.uint8)
    images[:, :, :, 0] = (60 * episode + 10 * at)[:, None, None]
    return with_frame_of_rlds(
        {
            CAMERA: images,
            "observation/state": (100 * episode + at[:, None] + np.arange(7) / 8).astype(np.float32),
            "action": (episode + at[:, None] + np.arange(7) / 16).astype(np.float32),
            "language_instruction": [f"do {episode}"] * number,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rlds(tmp_path / "toy", [steps_of(episode) for episode in range(3)])


def test_the_sum_is_that_of_rfc_3720() -> None:
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA
    data = np.random.default_rng(0).bytes(3 * tfrecord.LANE + 7)  # a long one goes another way
    bit_by_bit = 0xFFFFFFFF
    for byte in data:
        bit_by_bit ^= byte
        for _ in range(8):
            bit_by_bit = (bit_by_bit >> 1) ^ (tfrecord.POLYNOMIAL if bit_by_bit & 1 else 0)
    assert tfrecord.crc32c(data) == bit_by_bit ^ 0xFFFFFFFF


def test_an_example_that_tensorflow_wrote() -> None:
    """The bytes that TensorFlow's tutorial on TFRecord prints."""
    data = (
        b"\nR\n\x14\n\x08feature2\x12\x08\n\x06\n\x04goat\n\x11\n\x08feature1\x12\x05\x1a\x03\n\x01\x04\n\x14\n\x08"
        b"feature3\x12\x08\x12\x06\n\x04[\xd3|?\n\x11\n\x08feature0\x12\x05\x1a\x03\n\x01\x00"
    )
    found = {name: list(values) for name, values in tfrecord.values(data).items()}
    assert found.pop("feature3") == pytest.approx([0.9876])
    assert found == {"feature0": [0], "feature1": [4], "feature2": [b"goat"]}


def test_numbers_images_and_sentences(folder: Path) -> None:
    source = open_source(folder)
    assert isinstance(source, RldsSource)
    assert (source.num_episodes, source.fps, dict(source.cameras)) == (3, 0.0, {CAMERA: (24, 32)})
    assert source.columns["observation/state"].size == 7
    assert source.columns["reward"].size == 1
    for episode, number in enumerate([0, 2, 1]):  # the first file has episodes 0 and 2
        numbers = source.numbers(episode, ["action", "observation/state", "is_first"])
        assert numbers["action"].shape == (4, 7)  # the last step's action means nothing
        np.testing.assert_allclose(numbers["action"], steps_of(number)["action"][:4])
        np.testing.assert_allclose(numbers["observation/state"], steps_of(number)["observation/state"][:4])
        assert numbers["is_first"].ravel().tolist() == [1, 0, 0, 0]
        assert source.instruction(episode, source.default_instruction) == f"do {number}"
        images = source.images(episode, CAMERA, [0, 3])
        assert [int(rgb[..., 0].mean().round()) for rgb in images] == pytest.approx(
            [60 * number, 60 * number + 30], abs=2
        )


def test_numbers_that_were_stored_as_bytes(tmp_path: Path) -> None:
    steps = steps_of(0)
    rows = steps["action"]
    folder = write_rlds(tmp_path / "toy", [steps | {"action": [zlib.compress(row.tobytes()) for row in rows]}], files=1)
    file = folder / "1.0.0/features.json"
    schema = json.loads(file.read_text())
    inside = schema["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    inside["action"] = {"tensor": {"shape": {"dimensions": ["7"]}, "dtype": "float32", "encoding": "zlib"}}
    file.write_text(json.dumps(schema))
    np.testing.assert_array_equal(RldsSource(folder).numbers(0, ["action"])["action"], rows[:4])


def test_the_mapping_says_the_rate(folder: Path) -> None:
    numbers = Numbers(slots=("dx",), column="action", at=(0,))
    state = Numbers(slots=("ee_x",), column="observation/state", at=(0,))
    without = Mapping(robot="r", camera=CAMERA, state=(state,), action=(numbers,))
    with pytest.raises(ConfigError, match=r"Set 'fps' in the mapping\. Bridge has 5, DROID 15, LIBERO 20"):
        require_fits(without, RldsSource(folder))
    require_fits(Mapping(**{**vars(without), "fps": 5}), RldsSource(folder))


def shard(folder: Path, number: int = 0) -> Path:
    return folder / f"1.0.0/toy-train.tfrecord-{number:05d}-of-00002"


def test_a_file_that_is_cut_off(folder: Path) -> None:
    whole = shard(folder).read_bytes()
    shard(folder).write_bytes(whole[:-100])
    with pytest.raises(
        DataError, match=r"00000-of-00002 ends inside record 1: \d+ bytes are needed, but it has \d+.*again"
    ):
        RldsSource(folder).numbers(0, ["action"])
    shard(folder).write_bytes(whole + b"1234")
    with pytest.raises(DataError, match=r"ends inside record 2: the file is truncated"):
        RldsSource(folder).numbers(0, ["action"])
    _, (second, _) = tfrecord_index(whole)
    shard(folder).write_bytes(whole[: second - 12])  # cut between two records
    with pytest.raises(DataError, match=r"has 1 records, but dataset_info\.json says 2\. Download the dataset again"):
        RldsSource(folder).numbers(0, ["action"])


def tfrecord_index(data: bytes) -> list[tuple[int, int]]:
    at, found = 0, []
    while at < len(data):
        [length] = struct.unpack_from("<Q", data, at)
        found.append((at + 12, length))
        at += length + 16
    return found


def test_a_byte_that_is_wrong(folder: Path) -> None:
    whole = shard(folder).read_bytes()
    [_, (second, length)] = tfrecord_index(whole)
    flipped = bytearray(whole)
    flipped[second + length // 2] ^= 1
    shard(folder).write_bytes(bytes(flipped))
    source = RldsSource(folder)
    source.numbers(0, ["action"])
    with pytest.raises(
        DataError, match=r"00000-of-00002: record 1 does not match its checksum.*Download the file again"
    ):
        source.numbers(1, ["action"])
    flipped = bytearray(whole)
    flipped[0] ^= 1
    shard(folder).write_bytes(bytes(flipped))
    with pytest.raises(
        DataError, match=r"the length of record 0 does not match its checksum.*is not an uncompressed TFRecord"
    ):
        RldsSource(folder).numbers(0, ["action"])


def read_second_episode(source: RldsSource) -> None:
    source.numbers(1, ["action"])
    source.images(1, CAMERA, [0, 3])


def refused(tmp_path: Path, steps: dict) -> str:
    """What is said of a second episode that is not as features.json says."""
    source = RldsSource(write_rlds(tmp_path / "toy", [steps_of(0), steps], files=1))
    with pytest.raises(DataError) as error:
        read_second_episode(source)
    return str(error.value)


def test_an_episode_that_lacks_something(tmp_path: Path) -> None:
    steps = steps_of(1)
    message = refused(tmp_path, {name: values for name, values in steps.items() if name != "action"})
    assert "record 1 (episode 1) has no feature 'steps/action'" in message
    message = refused(tmp_path, steps | {"action": steps["action"][:2]})
    assert "'steps/action' has 14 numbers; expected 4 steps of 7. Download" in message
    message = refused(tmp_path, steps | {CAMERA: [b"no image"] * 5})
    assert "image 0 of 'steps/observation/image_0' cannot be decoded" in message
    assert "--omit 1" in message
    folder = tmp_path / "toy/1.0.0"
    with (folder / "toy-train.tfrecord-00000-of-00001").open("wb") as file:
        for data in (serialized(steps_of(0)), b"\xff\xff no example"):
            head = struct.pack("<Q", len(data))
            sums = (struct.pack("<I", tfrecord.masked_crc(part)) for part in (head, data))
            file.write(head + next(sums) + data + next(sums))
    with pytest.raises(DataError, match=r"record 1 is not an RLDS episode: it is not a tf\.train\.Example"):
        RldsSource(folder).numbers(1, ["action"])


def test_a_folder_that_is_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--split val: the source has train"):
        open_source(folder, "val")
    with pytest.raises(ConfigError, match="is not an RLDS dataset and has no splits"):
        open_source(tmp_path / "toy.h5", "val")
    info = folder / "1.0.0/dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"tfrecord"', '"array_record"'))
    with pytest.raises(
        DataError, match=r"is in the format array_record, but only tfrecord can be imported\. Convert it"
    ):
        RldsSource(folder)
    info.write_text(text)
    shard(folder, 1).unlink()
    with pytest.raises(DataError, match=r"has no toy-train\.tfrecord-00001-of-00002, file 2 of 2\. Download"):
        RldsSource(folder)
    features = folder / "1.0.0/features.json"
    features.write_text('{"type": "FeaturesDict", "content": {}}')
    with pytest.raises(DataError, match=r"written by TFDS before 4\.7"):
        RldsSource(folder)
    (tmp_path / "toy/2.0.0").mkdir()
    (tmp_path / "toy/2.0.0/features.json").write_text("{}")
    with pytest.raises(DataError, match=r"contains several versions: 1\.0\.0, 2\.0\.0\. Give the folder of one"):
        RldsSource(folder)
    with pytest.raises(DataError, match=r"is not a TFDS dataset: it has no features\.json"):
        RldsSource(tmp_path)


def test_a_shard_outside_the_dataset_is_refused(folder: Path) -> None:
    info = folder / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("{DATASET}-", "../../{DATASET}-"))
    with pytest.raises(DataError, match=r"names the file \.\./\.\./toy-train.*, which lies outside the dataset"):
        RldsSource(folder)


@pytest.mark.parametrize(("size", "turn", "kept"), [(24, 0, True), (12, 0, False), (24, 180, False)])
def test_jpeg_files_of_the_right_size_are_kept_bit_for_bit(tmp_path: Path, size: int, turn: int, kept: bool) -> None:
    steps = steps_of(0)
    source = RldsSource(write_rlds(tmp_path / "toy", [steps | {CAMERA: steps[CAMERA][:, :, 4:28]}]))
    action = Numbers(slots=("dx",), column="action", at=(0,))
    state = Numbers(slots=("ee_x",), column="observation/state", at=(0,))
    mapping = Mapping(
        robot="r", camera=CAMERA, state=(state,), action=(action,), fps=5, image_size=size, image_turn_deg=turn
    )
    episode = episode_of(mapping, source, 0, index=0, options=ConvertOptions(quality=50))
    assert (episode.image_jpeg == source.files(0, CAMERA, range(4))) == kept
    assert decode_frames(episode.image_jpeg).shape == (4, size, size, 3)
