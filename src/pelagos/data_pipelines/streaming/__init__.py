"""From datasets to batches: which sample comes when, and how its fields become channels."""
