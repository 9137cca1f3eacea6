"""Neural networks and nothing else: vision.py language.py trunk.py heads.py -> policy.py -> inference.py."""
