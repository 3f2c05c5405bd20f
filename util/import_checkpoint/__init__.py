"""Published checkpoints of other programs, turned into snapshots."""
