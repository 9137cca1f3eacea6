"""Simulates the tabletop in PyBullet: any robot of envs/robots.py, on a CPU, with the same bytes on every machine."""
