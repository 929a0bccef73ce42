"""What tests the recipe and the claims: benchmark, study, soak, fuzz, the paper's figures."""
