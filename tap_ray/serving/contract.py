"""Describes the inputs and outputs of a served policy as JSON for clients, and checks their messages."""

import reprlib
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from tap_ray.errors import SpecError
from tap_ray.models.chunk_buffer import ActionChunkBuffer, ChunkingSpec, PolicyInput
from tap_ray.serving.request_error import RequestError
from tap_ray.serving.wire import NAMES
from tap_ray.specs import RobotSpec, require_compatible

VERSION = 1
"""Version of the messages, which GET /spec reports."""
MAX_WORDS_BYTES = 2000
"""Longest instruction, bytes of UTF-8."""
SPARE_BYTES = 16_384
"""Bytes of a message besides its arrays: header, instruction."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A validated request of one robot."""

    session: str
    number: int
    instruction: str
    rgb: np.ndarray
    extra_rgb: np.ndarray | None
    state: np.ndarray
    action: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The interface of a served policy."""

    policy: str
    """Name of its run folder."""
    policy_hash: str
    """Hash in the run's manifest."""
    spec: RobotSpec
    image_size: int
    """Side of the square camera images, px."""
    chunking: ChunkingSpec

    @property
    def max_bytes(self) -> int:
        """Length of the longest valid message, bytes."""
        images = 3 * self.image_size**2 * len(self.spec.cameras)
        return images + 4 * (len(self.spec.state) + len(self.spec.action)) + SPARE_BYTES

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the cameras' images in a message: "rgb", then e.g. "rgb_wrist"."""
        return ("rgb", *(f"rgb_{name}" for name in self.spec.cameras[1:]))

    @property
    def chunk_s(self) -> float:
        """Duration of a chunk's executed actions, s, after which a robot needs the next ones."""
        return self.chunking.n_action_steps / self.spec.control_hz

    def probe(self) -> PolicyInput:
        """An input of black images and a state of zeros."""
        rgb = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        extra = _stacked([rgb] * len(self.images[1:]))
        look = ActionChunkBuffer(self.chunking, None).observe(rgb, np.zeros(len(self.spec.state)), None, "go", extra)
        assert look is not None
        return look

    def to_json(self) -> dict[str, Any]:
        """The answer of GET /spec."""
        return {
            "version": VERSION,
            "policy": self.policy,
            "policy_hash": self.policy_hash,
            **{name: {"dtype": "U8", "shape": [self.image_size, self.image_size, 3]} for name in self.images},
            "state": {"dtype": "F32", "shape": [len(self.spec.state)]},
            "action": {"dtype": "F32", "shape": [len(self.spec.action)]},
            "history": self.chunking.history,
            "n_action_steps": self.chunking.n_action_steps,
            "execute": self.chunking.n_action_steps,  # its former name, for robots that read it
            "max_bytes": self.max_bytes,
            "spec": self.spec.to_json(),
        }

    def require_spec(self, values: Any) -> None:
        """Refuse (422) a robot whose interface is not that of the policy, naming every difference."""
        if not isinstance(values, Mapping):
            raise RequestError(
                422,
                'A session begins with {"spec": what your robot emits, "seed": a number}; spec is '
                f"{reprlib.repr(values)}. "
                'Compare your robot with GET /spec and send its "spec" back.',
            )
        try:
            require_compatible(
                RobotSpec.from_json(values, where="Your robot's spec"),
                self.spec,
                have_name="your robot",
                want_name=f"policy {self.policy}",
            )
        except (SpecError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(422, str(error)) from None

    def step(self, metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> Step:
        """Check one message.

        Raises:
            RequestError: 422, names what was expected, what came and what to do.
        """
        number = _number(metadata.get("step"))
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            **dict.fromkeys(self.images, ("uint8", (self.image_size, self.image_size, 3))),
            "state": ("float32", (len(self.spec.state),)),
        }
        if self.chunking.history and number > 0:
            expected["action"] = ("float32", (len(self.spec.action),))
        for name, (dtype, shape) in expected.items():
            _check(name, arrays.get(name), dtype, shape)
        unknown = sorted(set(arrays) - {*expected, "action"})
        if unknown:
            raise RequestError(422, f"Unknown array {unknown[0]!r}. A step has the arrays {', '.join(expected)}.")
        return Step(
            session=metadata.get("session", ""),
            number=number,
            instruction=_words(metadata.get("instruction", "")),
            rgb=arrays["rgb"],
            extra_rgb=_stacked([arrays[name] for name in self.images[1:]]),
            state=arrays["state"],
            action=arrays["action"] if "action" in expected else None,
        )


def _stacked(images: list[np.ndarray]) -> np.ndarray | None:
    return np.stack(images) if images else None


def _check(name: str, array: np.ndarray | None, dtype: str, shape: tuple[int, ...]) -> None:
    want = f"{name}: expected {NAMES[dtype]} {list(shape)}"
    cures = {
        "rgb": "Resize the camera's image to the size that the policy was trained on, rows first, channels R G B.",
        "state": 'Send the slots that GET /spec lists under "spec", in that order.',
        "action": "This policy has a history: send the previous action as it was executed (clipped to its range).",
    }
    cure = cures.get(name, cures["rgb"])
    if array is None:
        raise RequestError(422, f"{want}; got nothing. {cure}")
    if array.dtype.name != dtype or array.shape != shape:
        raise RequestError(422, f"{want}; got {NAMES[array.dtype.name]} {list(array.shape)}. {cure}")
    if not np.isfinite(array).all():
        raise RequestError(
            422, f"{name}: slot {int(np.argmin(np.isfinite(array)))} is NaN or infinite. Check the robot's sensors."
        )


def _number(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(422, f'metadata "step": expected the number of the step, counted from "0"; got {text!r}.')
    return int(text)


def _words(text: str) -> str:
    if not text.strip():
        raise RequestError(
            422,
            'metadata "instruction" is missing or empty: this policy does what a sentence says, e.g. '
            '"put the carrot on the plate". Send it with every step.',
        )
    if len(text.encode()) > MAX_WORDS_BYTES:
        raise RequestError(
            422, f'metadata "instruction" has {len(text.encode())} bytes; the limit is {MAX_WORDS_BYTES}.'
        )
    return text
