"""What a training run needs around its loop: checkpoints, metrics, retrieval, the report."""
