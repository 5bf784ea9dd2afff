"""Checkpoints as people have them: files, folders and repositories of the hub, under the names of several libraries."""
