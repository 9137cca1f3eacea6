"""The tabletop in PyBullet: any robot of envs/robots.py, on a CPU, the same bytes on every machine."""
