"""The tests' own check of the contract's arrays works."""

from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.moving_square import square_window


@pytest.mark.parametrize(
    "change", [{"state": np.zeros((3, 7), np.float32)}, {"rgb": np.zeros((2, 8, 8, 3), np.float32)}]
)
def test_an_array_of_another_shape_or_kind_is_refused(change: dict[str, np.ndarray]) -> None:
    window = square_window(0, 0, batch=2, chunk=1, goal=True)
    with pytest.raises(TypeCheckError):
        replace(window, **change)
