"""What a training takes before it starts: parameters, memory, FLOPs, steps/s (`--plan`), and what would fit."""
