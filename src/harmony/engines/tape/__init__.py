"""The fast engine: per-sample gradients read off the autograd graph of one ordinary forward pass.

In the order of a step: ``graph`` walks the graph; ``sample_axis`` finds where the samples lie in it (``layout``), by
``axis_rules`` or by ``experiment``; ``param_tensor`` collects the uses of each parameter (``param_use``) by
``grad_rules``; ``plan`` chooses how each is computed; ``passes`` sends the losses back through the graph, through one
of its ``pieces`` after the other where activations are ``recomputed``; ``materialize`` and ``ghost`` compute products;
``per_sample`` puts Gram blocks and update together; ``engine`` ties the parts together. ``verify`` is the safety net
below.
"""
