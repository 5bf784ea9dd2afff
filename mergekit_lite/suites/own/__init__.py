"""A suite that is described by a file: your own models, tasks and images."""
