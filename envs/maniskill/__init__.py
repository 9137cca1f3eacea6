"""Simulates SIMPLER's four WidowX tasks in ManiSkill, with the same interface as the tabletop."""
