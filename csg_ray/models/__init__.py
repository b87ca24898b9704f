"""Encoders whose stages can be tapped, and their pre-trained weights."""
