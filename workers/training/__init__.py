"""The training loop: loading, sampling, losses, checkpoints, several GPUs."""
