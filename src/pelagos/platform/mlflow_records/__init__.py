"""A run's records in MLflow."""
