"""The whole machine in one read: play -> data set -> pretrain -> align -> evaluate -> compare.

Six stages, each a function that reads a folder and writes a folder. The defaults are small enough for two cores in
six minutes (`make demo`); every stage is also a job of its own (`python -m jobs.<verb> --help`).
"""
