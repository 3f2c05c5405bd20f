"""What every other package may use: configuration, data, noise, snapshots, logging, process groups."""
