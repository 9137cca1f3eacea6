"""Serve a policy over HTTP and WebSocket: robots send images and states and get actions. Ctrl-C stops it.

tap_ray/serving/wire.py describes the messages, app.py beside it the routes; client.py is a client that you can copy.
"""

import threading
from contextlib import suppress
from pathlib import Path

from tap_ray import registry
from tap_ray.distributed.connect import connect
from tap_ray.distributed.serve import serving
from tap_ray.evaluate.trained import interface
from tap_ray.job import run_job
from tap_ray.models.inference import load_policy
from tap_ray.runs import hash_of
from tap_ray.serving import settings
from tap_ray.serving.admission import Admission, digest
from tap_ray.serving.contract import Contract
from tap_ray.serving.settings import ServeConfig, url


def contract_of(run: Path) -> Contract:
    """The interface of a run's policy. It loads the network, so that a broken one is reported before Ray starts."""
    spec, image_size = interface(run)
    chunking = load_policy(run)[0].chunking
    return Contract(policy=run.name, policy_hash=hash_of(run), spec=spec, image_size=image_size, chunking=chunking)


def main(config: ServeConfig) -> Path:
    """Serve until Ctrl-C; returns the folder of the policy that was served."""
    settings.check(config)
    run = registry.local(config.policy).resolve()
    token, tls = settings.token_of(config), settings.tls_of(config)
    admission = Admission(digest(token[0]) if token else None, settings.names_of(config))
    with settings.listening(config.host, config.port) as listening:
        contract, port = contract_of(run), listening.getsockname()[1]
        with connect(config.ray_address), suppress(KeyboardInterrupt):
            print(f"starting {config.replicas} x {run.name} ...", flush=True)
            with serving(str(run), contract, config, listening=listening, tls=tls, admission=admission):
                if token and not tls and not settings.is_loopback(config.host):
                    print(
                        "warning: the token and the images cross the network unencrypted. Use --tls-cert and "
                        "--tls-key (docs/serving.md)."
                    )
                print(f"ready: {contract.spec.robot}, {contract.image_size} px, {url(config, port, 'ws')}/ws; try")
                print(f"  curl {settings.curl_flags(config, token)}{url(config, port, 'http')}/spec", flush=True)
                threading.Event().wait()
    print("stopped")
    return run


if __name__ == "__main__":
    run_job(main, ServeConfig)
