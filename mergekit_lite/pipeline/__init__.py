"""From a profile to the book: notebooks are run by papermill, checked, promoted, and built into pages."""
