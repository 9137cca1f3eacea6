"""From episodes to a dataset on disk, and from there to batches of training windows. Nothing here imports torch.

Read in this order: layout.py (files and columns), writer.py, reader.py, windows.py. `lerobot.py` gathers the format's
public names and holds the command `python -m tap_ray.dataset.lerobot verify PATH`.
"""
