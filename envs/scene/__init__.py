"""What lies on the table, what it looks like and what is asked of it. No simulator is imported here."""

VERSION = "3"
"""Of the scenes. Raise it with any change that could change an episode: old results are then another protocol's."""
