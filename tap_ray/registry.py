"""Stores policies in MLflow's model registry as the files of a run folder; nothing is pickled.

registry.register("runs/align-1", tracked, ...)  ->  version 3 of "tap": manifest.json, config.json, final/, ...
registry.local("models:/tap/3")                  ->  runs/models/tap-3, a run folder like any other
"""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Mapping

from tap_ray import runs, storage, tracking
from tap_ray.errors import CheckpointError

MODEL = "tap"
"""Name of our policies in the registry."""
SCHEME = "models:/"
KEPT = ("manifest.json", "config.json", "metrics.jsonl", "final")
"""Files of a training run that make up a policy."""
FACTS = "registered.json"
"""File of lineage and success rates, stored with them."""


def register(
    run: Path,
    tracked: tracking.Run,
    *,
    metadata: Mapping[str, Any],
    tags: Mapping[str, str],
    description: str,
) -> str:
    """Put a policy into the registry, once for each training run and MLflow run that it is registered by.

    Args:
        run: folder of a finished run of jobs.align.
        tracked: the MLflow run whose artifacts keep the files.
        metadata: plain JSON that is stored with the policy. tags, description: tags and description of the version.

    Returns:
        The version's number.

    Raises:
        CheckpointError: `run` is not a finished run of jobs.align.
        StorageError: MLflow does not answer.
    """
    manifest = runs.require_done(run, job="align")
    client = tracking.client_of(tracked.uri)
    place = f"policy-{manifest['hash'][:10]}"
    with tracking.translate_errors(tracked.uri):
        _create(client)
        for version in client.search_model_versions(f"name = '{MODEL}'"):
            if version.run_id == tracked.run_id and version.tags.get("align") == manifest["hash"]:
                return str(version.version)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FACTS
            file.write_text(json.dumps(metadata, indent=2, default=str) + "\n")
            client.log_artifact(tracked.run_id, str(file), place)
        for part in filter(lambda part: (run / part).exists(), KEPT):
            with storage.local_copy(run / part) as here:
                if here.is_dir():
                    client.log_artifacts(tracked.run_id, str(here), f"{place}/{part}")
                else:
                    client.log_artifact(tracked.run_id, str(here), place)
        source = f"{client.get_run(tracked.run_id).info.artifact_uri}/{place}"
        made = client.create_model_version(
            MODEL, source, run_id=tracked.run_id, tags={**tags, "align": manifest["hash"]}, description=description
        )
    return str(made.version)


def _create(client: Any) -> None:
    """Create our model in the registry unless it exists."""
    known = f"name = '{MODEL}'"
    if client.search_registered_models(known):
        return
    try:
        client.create_registered_model(MODEL, description="Policies of tap_ray: safetensors and JSON.")
    except tracking.error_type():
        if not client.search_registered_models(known):  # or another sweep was faster
            raise


def promote(version: str, alias: str, *, score: str, uri: str) -> bool:
    """Point an alias to a version if its tag (a number) is larger than that of the current version of the alias.

    Returns:
        Whether the alias points to this version.
    """
    client = tracking.client_of(uri)
    with tracking.translate_errors(uri):
        held = client.get_registered_model(MODEL).aliases.get(alias)
        if held is not None and str(held) != version:
            now, new = (float(client.get_model_version(MODEL, str(v)).tags.get(score, 0)) for v in (held, version))
            if new <= now:
                return False
        client.set_registered_model_alias(MODEL, alias, version)
    return True


def local(policy: Path | str, store: Path | None = None) -> Path:
    """A policy's run folder: `policy` itself, or for "models:/NAME/VERSION" or "models:/NAME@ALIAS" a local copy.

    Args:
        policy: the value that the user gave.
        store: folder of the copy; None: `runs`.

    Raises:
        CheckpointError: the registry has no such version, or its files are gone.
        StorageError: MLflow does not answer.
    """
    text = str(policy).replace("models://", SCHEME)
    if not text.startswith(SCHEME):
        return storage.to_path(policy)
    client = tracking.client_of()
    name, _, number = text.removeprefix(SCHEME).partition("/")
    alias = name.partition("@")[2]
    name = name.partition("@")[0]
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
        folder = (store or runs.STORE) / "models" / f"{name}-{version.version}"
        if not runs.is_done(folder) or runs.read_json(folder / "manifest.json")["hash"] != version.tags.get("align"):
            temporary = Path(tempfile.mkdtemp(dir=_made(folder.parent)))
            place = str(version.source).rstrip("/").rpartition("/")[2]
            fetched = client.download_artifacts(str(version.run_id), place, str(temporary))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(fetched, folder)
            shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # noqa: BLE001  stores of artifacts raise what their libraries do
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{policy} is not in the registry of {tracking.tracking_uri()}: {reason} {_known(client, name)}"
        ) from None
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(client: Any, name: str) -> str:
    """A sentence that lists the versions of a model."""
    known: list[str] = []
    with contextlib.suppress(tracking.error_type()):  # a name that MLflow cannot search for
        known = [str(version.version) for version in client.search_model_versions(f"name = '{name}'")]
    return f"It has versions {', '.join(sorted(known, key=int))} of {name!r}." if known else f"It has no {name!r}."
