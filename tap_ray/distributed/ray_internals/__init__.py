"""Every import of a private Ray module, each with its purpose and the public API that would replace it.

Private modules change without notice, so pyproject.toml pins Ray to the minor version that is tested. On a new one
check these files first; `tests/test_architecture.py` sees that no other file imports private modules.

A file each for Ray itself, Ray Data and Ray Train: a fleet's process must not pay 100 MB for the latter two.
"""
