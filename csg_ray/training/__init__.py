"""Plain PyTorch training in one process: loop, optimiser, checkpoints. No Ray."""
