"""The run folder: its layout, lock, checkpoints, metrics file and configuration."""
