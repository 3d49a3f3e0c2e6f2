"""What every training needs: datasets, network, objective, and the checks before it starts."""
