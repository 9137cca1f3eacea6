"""Provides a robot, a task, a scenario, an explorer and a policy that tap_ray finds by their entry points
(pyproject.toml)."""
