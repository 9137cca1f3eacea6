"""Checks whether a dataset is fit to learn from.

survey.py, one pass over its numbers  --.
                                         >-- motion_checks.py, content_checks.py --> report.py, page.py
frames.py, some of its images         --'
"""
