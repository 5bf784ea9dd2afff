"""All that a suite file names is brought ahead of time: from the hub, and decoded."""

from mergekit_lite.errors import KitError
from mergekit_lite.suites import load_suite
from mergekit_lite.suites.own.own_suite import OwnSuite
from mergekit_lite.suites.suite import Which


def fetch_own(name: str, tasks: str | None, *, train: bool, workers: int) -> OwnSuite:
    """Fetch the base and the experts, decode the images, and return the suite.

    Args:
        name: of the suite file.
        tasks: names with commas between, or a set; None is all.
        train: whether training images are brought too, where there are any.
        workers: processes that decode.

    Raises:
        KitError: some things cannot be brought; what was brought is kept, and all problems are listed.
    """
    suite = load_suite(name, "cpu")
    assert isinstance(suite, OwnSuite)
    chosen = suite.names(tasks) if tasks else tuple(suite.tasks)
    splits: tuple[Which, ...] = ("test", "train") if train else ("test",)
    problems = []
    for task in chosen:
        try:
            print(f"{task}: expert, {suite.describe_expert(task)}", flush=True)
            for which in splits:
                if suite.has_split(task, which):
                    print(f"{task}: {suite.bring(task, which, workers)} {which} images", flush=True)
        except KitError as error:
            problems.append(f"  {task}: {error}")
    if problems:
        raise KitError(
            f"{len(problems)} of {len(chosen)} tasks could not be brought; what was brought is kept.\n"
            + "\n".join(problems)
        )
    print("All is there. With HF_HUB_OFFLINE=1 nothing is asked of the hub any more.", flush=True)
    return suite
