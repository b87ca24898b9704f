"""Pure parts of the contrastive loss: tensors in, tensors out, no settings."""
