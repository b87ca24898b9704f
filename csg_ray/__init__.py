"""Contrastive Syn-to-Real Generalization, searched and scaled with Ray."""
