"""Engines: ways to run an encoder so that per-sample parameter gradients can be read from it.

An engine knows nothing of losses or realignment. It encodes a batch and returns an ``Encoded``: the embeddings, and
functions that turn cotangents at the embeddings into Gram blocks or into a parameter gradient.
"""
