"""The one training loop and what it needs. Knows neither Ray nor MLflow nor any simulator."""
