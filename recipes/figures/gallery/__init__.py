"""Galleries of the clips whose gradients agree most and least, as figures 1 and 2 of the paper show them."""
