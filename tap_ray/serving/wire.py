"""Packs and unpacks messages, which are safetensors files. No pickle; libraries in C++, Rust and JavaScript can read
them.

    8 bytes     length N of the header, little-endian unsigned
    N bytes     header, JSON: {"state": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}, ...,
                               "__metadata__": {"session": "...", "step": "0", "instruction": "..."}}
    the rest    the arrays' bytes, C order, little-endian; offsets count from here

A step, client to server (POST /act, or a binary WebSocket message):
    "rgb"     (Y, X, 3) U8   the first camera's image; of each other one "rgb_" and its name, as GET /spec lists them
    "state"   (S,) F32       proprioception, slots and units as in GET /spec
    "action"  (A,) F32       the action before, as the robot executed it; only if GET /spec says "history" > 0, and
                             not at step 0
    metadata  "session", "step" (counts from 0), "instruction"
The answer: "action" (A,) F32, metadata "session" and "step". An error is JSON: {"status": 422, "error": "..."}.
"""

import json
from typing import Mapping

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from tap_ray.serving.request_error import RequestError

DTYPES = {"U8": np.dtype(np.uint8), "F32": np.dtype("<f4")}
NAMES = {"uint8": "U8", "float32": "F32"}
HEADER_BYTES = 8


def pack(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Pack one message; `unpack` is the inverse."""
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=dict(metadata))


def unpack(body: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Unpack the metadata and (read-only) arrays of a message.

    Raises:
        RequestError: 400, the message is not safetensors; 422, an array is neither uint8 nor float32.
    """
    try:
        found = deserialize(body)
        header = json.loads(body[HEADER_BYTES : HEADER_BYTES + int.from_bytes(body[:HEADER_BYTES], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise RequestError(
            400,
            f"Expected one safetensors message; got {len(body)} bytes that are not: {error}. A message is an 8-byte "
            "length, a JSON header and the arrays' bytes: see tap_ray/serving/wire.py.",
        ) from None
    for name, tensor in found:
        if tensor["dtype"] not in DTYPES:
            raise RequestError(422, f"{name}: expected dtype {' or '.join(DTYPES)}; got {tensor['dtype']}.")
    arrays = {
        name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"]) for name, tensor in found
    }
    return header.get("__metadata__") or {}, arrays
