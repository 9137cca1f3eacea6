"""Contains the training loop and what it needs, without Ray, MLflow or a simulator."""
