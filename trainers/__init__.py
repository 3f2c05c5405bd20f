"""The one training loop, and one file per system that says what a training step is."""
