"""Several processes that split a batch: each encodes its own samples, all see the embeddings of everybody."""

from harmony.distributed.collectives import gather

__all__ = ["gather"]
