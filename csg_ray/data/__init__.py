"""The splits of each task, and the way from a raw image to a batch."""
