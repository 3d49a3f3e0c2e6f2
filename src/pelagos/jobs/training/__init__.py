"""Parts of every training: datasets, network, objective, and the checks before it starts."""
