"""What a run will cost on this machine, from what it cost where its records were made."""
