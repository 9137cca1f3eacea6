"""Every case of tests/jobs/bad_input.py says what tests/jobs/bad_input.md shows."""

from pathlib import Path

import pytest

from tests.jobs import bad_cases, bad_input
from tests.jobs.bad_cases import CASES
from tests.jobs.bad_input import DOCUMENT, document, documented

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ray.serve's own imports


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_cases.shop(tmp_path_factory.mktemp("bad") / "good")


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    return documented(DOCUMENT.read_text())


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_message(name: str, shop: Path, shown: dict[str, str], tmp_path: Path):
    ended = bad_input.run(CASES[name], shop, tmp_path / "here")
    assert ended.output == shown[name], "if the new text is better: python -m tests.jobs.bad_input"
    assert ended.status == (1 if "verify demos" in CASES[name].command else 2)
    assert "Traceback" not in ended.output


def test_the_document_holds_these_cases_and_no_others(shown: dict[str, str]):
    assert DOCUMENT.read_text() == document(shown)
    assert set(shown) == set(CASES)
    assert len(CASES) >= 30
