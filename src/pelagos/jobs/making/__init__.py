"""Making datasets: the work that `generate` and `convert` share."""
