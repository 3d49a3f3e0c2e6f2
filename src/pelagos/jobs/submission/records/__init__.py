"""The durable record of a submitted run, and why it ended."""
