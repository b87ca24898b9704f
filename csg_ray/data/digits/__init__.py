"""The embedded task: rendered digits as the source, handwritten ones as the target."""
