"""Which tasks a profile's notebooks are about."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit_lite.pipeline import runner
from mergekit_lite.pipeline.profiles import Profile


def named_tasks(profile: Profile, root: Path) -> tuple[str, ...]:
    """Return the tasks that any notebook of the profile names, alone, in a set or in a list, in the suite's order.

    Of a suite file these are all if none is named: its notebooks may take what they are about from the suite.

    Raises:
        KitError: a notebook's parameters are wrong, or the suite file is not valid.
    """
    from mergekit_lite.suites import SUFFIXES, suite_path
    from mergekit_lite.suites.clip.benchmark import hub_tasks
    from mergekit_lite.suites.own.reading import read_suite_file
    from mergekit_lite.suites.suite import PREFIXES

    words: set[str] = set()
    for notebook in profile.notebooks:
        defaults = runner.notebook_parameters(root / "notebooks" / f"{notebook}.ipynb")
        values = {name: one.default for name, one in defaults.items()}
        values |= runner.check_parameters(profile, notebook, root)
        words |= {word for value in values.values() if isinstance(value, str) for word in re.split(r"[,+\s]+", value)}
    own: Mapping[str, Sequence[str]] = {}
    if is_own := profile.suite.endswith(SUFFIXES):
        file = read_suite_file(suite_path(profile.suite))
        known, own = tuple(file.tasks), file.sets
    else:
        known = tuple(hub_tasks())
    sets = {name: known[:size] for name, size in PREFIXES.items() if size <= len(known)} | dict(own)
    named = {task for word in words for task in sets.get(word, [word])}
    found = tuple(task for task in known if task in named)
    return found or (known if is_own else ())
