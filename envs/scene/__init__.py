"""Defines the objects on the table, their appearance, and the tasks. No simulator is imported here."""

VERSION = "3"
"""Version of the scenes. Raise it with any change that could change an episode, so that older results belong to another
protocol."""
