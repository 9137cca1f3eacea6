"""Imports datasets of other formats: source -> mapping -> control rate -> episodes.

    lerobot.py     LeRobot v2.1 and v3.0, images or video   --.
    rlds.py        RLDS / Open X-Embodiment, TFRecord         >-- source.Source --> convert.py --> types.Episode
    hdf5.py        ManiSkill's and robomimic's HDF5         --'        ^                 |
                                                                  mapping.py         checks.py: does it look right?

It imports neither Ray nor torch.
"""
