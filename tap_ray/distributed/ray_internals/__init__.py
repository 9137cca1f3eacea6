"""Every import of a private Ray module, each with its purpose and the public API that would replace it.

Private modules change without notice, so pyproject.toml pins Ray to the minor version that is tested. Before you change
it, check these files; `tests/test_architecture.py` checks that no other file imports private modules.

There is a file each for Ray itself, Ray Data and Ray Train, because the latter two would cost a fleet's process 100 MB.
"""
