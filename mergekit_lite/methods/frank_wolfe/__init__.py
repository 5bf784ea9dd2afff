"""FW-Merging: the oracle, the gradient, and the hard and the soft variant."""
