"""Exports datasets in the formats of other libraries: LeRobot v3.0 with video, and v2.1 (openpi). No Ray, no torch.

lerobot.py  what each version's files contain
mapping.py  a mapping with which jobs.import_dataset imports an export again
export.py   dataset -> files, several at a time, each exactly once
"""
