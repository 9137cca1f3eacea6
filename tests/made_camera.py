"""A camera whose calibration can be worked out by hand."""

import numpy as np

FROM_ABOVE = np.array([[0.0, -100.0, 0.0, 31.5], [-100.0, 0.0, 0.0, 60.0], [0.0, 0.0, 0.0, 1.0]])
"""Looks straight down from far above, 100 px a meter: column 31.5 - 100 y, row 60 - 100 x."""
