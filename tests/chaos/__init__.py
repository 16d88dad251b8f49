"""What a training survives: cut power, full and damaged disks, killed processes, hostile files. Run by `make chaos`."""
