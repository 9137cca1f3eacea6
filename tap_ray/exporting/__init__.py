"""Our datasets for others: LeRobot v3.0 with video, and v2.1 (openpi). No Ray, no torch.

lerobot.py  what each version's files hold
mapping.py  the way back: a mapping for jobs.import_dataset
export.py   dataset -> files, several at a time, each exactly once
"""
