"""SIMPLER's four WidowX tasks in ManiSkill, behind the same contract as the tabletop."""
