"""Writes episodes into a dataset on disk, and reads batches of training windows from it. Nothing here imports torch.

Read in this order: layout.py (files and columns), writer.py, reader.py, windows.py, schedule.py. `lerobot.py` gathers
the format's public names and holds the command `python -m tap_ray.dataset.lerobot verify PATH`.
"""
