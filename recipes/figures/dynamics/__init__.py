"""What the cosines of a run's two gradients did over training: figure 3 of the paper's supplement, and its numbers."""
