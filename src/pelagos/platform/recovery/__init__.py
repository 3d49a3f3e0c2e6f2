"""What happens after a worker failed: its record, and whether and where workers are started again."""
