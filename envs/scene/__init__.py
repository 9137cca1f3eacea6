"""The objects on the table, their appearance, and the tasks. No simulator is imported here."""

VERSION = "3"
"""Of the scenes. Raise it with any change that could change an episode: old results are then another protocol's."""
