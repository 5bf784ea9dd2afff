"""What a run will cost on this machine: measured in seconds, before the run."""
