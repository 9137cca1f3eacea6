"""Looking inside a network: Grad-CAM and how much of it lies where, linear probes, what a motion prior has learned."""
