"""Accuracy of checkpoints as people have them, on the tasks of a suite."""
