"""Computes where an arm's end effector is, and which joints bring it to a pose. No simulator is imported here."""
