"""What `mergekit-lite course new` copies for a student: all files of this folder but this one."""
