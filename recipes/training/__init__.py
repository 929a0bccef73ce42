"""What a training run is made of: its steps, its processes and their launch, checkpoints, metrics."""
