"""Plain PyTorch training in one process: loop, optimiser, checkpoints, records. No Ray."""
