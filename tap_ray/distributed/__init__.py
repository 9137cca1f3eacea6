"""Contains all code that runs on Ray, and every `import ray` of the project. Without it each stage still runs, in one
process."""

import os
import sys

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # lines of its C++ part would break progress bars; its log files have more
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # jobs draw their own progress bars
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # only `connect` starts Ray; a late thread of Ray Data must not
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES of processes without a GPU alone
}
"""What we set before Ray is loaded, unless the user has set it."""

# Ray reads its environment once, when it is imported: setting it later would make its parts disagree. A local Ray
# switches token authentication on by itself in that case.
if "ray" not in sys.modules:
    for _name, _value in ENVIRONMENT.items():
        os.environ.setdefault(_name, _value)
