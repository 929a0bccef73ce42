"""The study of what harmonization buys: clips whose truth is known, noise of several kinds, rules that are compared."""
