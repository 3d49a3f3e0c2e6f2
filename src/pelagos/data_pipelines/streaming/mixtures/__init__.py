"""Several datasets as one stream: their order, their shares, and what a checkpoint keeps of them."""
