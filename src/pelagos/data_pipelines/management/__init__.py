"""What is done with whole datasets: append to them, copy, merge, split and describe them."""
