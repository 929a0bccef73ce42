"""What a training run needs around its steps: processes and their launch, checkpoints, metrics, locks and folders."""
