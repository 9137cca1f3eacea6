import pickle

import pytest

from tap_ray import errors
from tap_ray.errors import StorageError, TapRayError, nearest

KINDS = [TapRayError, *TapRayError.__subclasses__()]


def test_one_root_few_kinds():
    assert {kind.__name__ for kind in KINDS} == {
        "TapRayError", "ConfigError", "SpecError", "DataError", "CheckpointError", "StorageError",
    }  # fmt: skip
    assert all(issubclass(kind, ValueError) for kind in KINDS)
    assert all(getattr(errors, kind.__name__) is kind for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_the_way_back_from_a_worker(kind):
    back = pickle.loads(pickle.dumps(kind("expected a, got b: do c")))
    assert type(back) is kind
    assert str(back) == "expected a, got b: do c"


def test_nearest_names_the_options_and_the_likely_one():
    assert nearest("carot", ["plate", "carrot"]) == "Did you mean 'carrot'? Known: carrot, plate."
    assert nearest("xyzzy", ["plate", "carrot"]) == "Known: carrot, plate."
    assert nearest("x", []) == "Known: ."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cret@db:5432/x is away", "postgresql://db:5432/x is away"),
        ("http://me:s3@cret@127.0.0.1:5000/a?b=c", "http://127.0.0.1:5000/a?b=c"),
        ("https://token@host", "https://host"),
        ("mysql://db/x?user=me&password=s3cret&ssl=1", "mysql://db/x?user=me&password=***&ssl=1"),
        ("http://host/a@b and me@example.org", "http://host/a@b and me@example.org"),
    ],
)
def test_no_message_holds_credentials(text: str, shown: str):
    assert str(StorageError(text)) == shown
    assert errors.without_credentials(text) == shown
    assert str(pickle.loads(pickle.dumps(StorageError(text)))) == shown
