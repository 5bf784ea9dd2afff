"""One model out of checkpoints as people have them: a plan, a merge that streams, and a folder that others can load."""
