"""Speed and memory against plain implementations and peers: one script a claim, see README.md."""
