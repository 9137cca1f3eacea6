"""Provides a client of jobs.serve that you can copy; it needs numpy and websockets only. Messages:
tap_ray/serving/wire.py."""

import json

import numpy as np
from websockets.sync.client import connect


class RemotePolicy:
    def __init__(self, url, spec, token="", tls=None):
        """`tls`: for wss://, ssl.create_default_context(cafile="cert.pem"). The robot's network needs no proxy."""
        self.spec, self.session, self.step = spec, "", 0
        headers = {"Authorization": f"Bearer {token}"}
        self.socket = connect(url, additional_headers=headers, ssl=tls, proxy=None, compression=None).__enter__()

    def reset(self, seed):
        begin = {"spec": self.spec, "seed": seed}
        self.session, self.step = json.loads(self.ask(json.dumps(begin)))["session"], 0

    def act(self, rgb, state, action, instruction, **other_cameras):
        """Raises TimeoutError if no action comes in time: hold the robot, then call it again with a new image.
        `other_cameras`: rgb_wrist=..., as GET /spec lists them."""
        about = {"session": self.session, "step": str(self.step), "instruction": instruction}
        body, header = b"", {"__metadata__": about}
        images = {name: np.asarray(image) for name, image in {"rgb": rgb, **other_cameras}.items()}
        for name, a in {**images, "state": np.float32(state), "action": np.float32(action)}.items():
            dtype, body, begin = "U8" if a.dtype == np.uint8 else "F32", body + a.tobytes(), len(body)
            header[name] = {"dtype": dtype, "shape": a.shape, "data_offsets": [begin, len(body)]}
        text = json.dumps(header).encode()
        answer, self.step = self.ask(len(text).to_bytes(8, "little") + text + body), self.step + 1
        return np.frombuffer(answer[8 + int.from_bytes(answer[:8], "little") :], "<f4")

    def ask(self, message):
        self.socket.send(message)
        if b'"error"' in (answer := self.socket.recv(decode=False)):
            refused = json.loads(answer)
            raise (TimeoutError if refused["status"] == 504 else RuntimeError)(refused["error"])
        return answer
