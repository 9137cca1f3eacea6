"""Looks inside a network: Grad-CAM and its distribution over robot and objects, linear probes, motion priors."""
