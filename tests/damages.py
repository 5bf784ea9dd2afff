"""What may happen to a kept file, for tests that it is noticed."""

from pathlib import Path


def made_a_folder(path: Path) -> None:
    """Put a folder into its place, which holds something that is somebody's."""
    path.unlink()
    (path / "somebody's").mkdir(parents=True)


def made_a_loop(path: Path) -> None:
    """Put a link to itself into its place."""
    path.unlink()
    path.symlink_to(path)
