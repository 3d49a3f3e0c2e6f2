"""`pelagos serve`: a trained model behind HTTP, with batches made by Ray Serve."""
