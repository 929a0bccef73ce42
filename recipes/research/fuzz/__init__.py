"""Random damage to what a user may bring: see `recipes.research.fuzz`."""
