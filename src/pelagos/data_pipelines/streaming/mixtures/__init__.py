"""Several datasets as one stream: their order, their shares, and their state in a checkpoint."""
