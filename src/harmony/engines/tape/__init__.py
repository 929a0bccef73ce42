"""The fast engine: per-sample gradients read off the autograd graph of one ordinary forward pass.

In the order of a step: ``graph`` walks the graph; ``probe`` finds where the samples lie in it (``layout``), ``order``
whether the data move them; ``target`` collects the uses of each parameter with the help of ``rules``; ``plan`` chooses
how each is computed; ``fill`` and ``ghost`` compute it; ``recording`` puts Gram blocks and update together; ``trace``
ties the parts into an engine.
"""
