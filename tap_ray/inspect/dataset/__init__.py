"""Is a dataset fit to learn from? One pass over its numbers (survey.py), some of its images (frames.py), checks, a page."""
