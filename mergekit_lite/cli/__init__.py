"""The command `mergekit-lite`. Each command imports what it needs when it is called, so that help comes at once."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from mergekit_lite.cli.course import app as course
from mergekit_lite.cli.evaluating import evaluate
from mergekit_lite.cli.merging import merge
from mergekit_lite.cli.records import app as records
from mergekit_lite.cli.starting import init
from mergekit_lite.cli.wording import at_home, worded
from mergekit_lite.errors import KitError

app = typer.Typer(
    name="mergekit-lite",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(course, name="course")
app.add_typer(records, name="records")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mergekit-lite {version('mergekit-lite')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """A reproducible research kit for model merging: run the experiments, build the book.

    Example: `mergekit-lite run miniature`, then `mergekit-lite promote miniature`, then `mergekit-lite book`.
    """


@app.command()
@worded
def run(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="A file of `profiles/`, without `.yaml`.")],
    only: Annotated[str | None, typer.Option(metavar="NOTEBOOK", help="Run this notebook alone.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run notebooks again that are still valid.")] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Compute the Ith of N shares of the cells, and stop there.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What computes the cells: processes, ray, or slurm, with options behind it; by default what the "
            "variable MERGEKIT_LITE_ENGINE names, else `engine:` of the profile, else processes of this machine.",
        ),
    ] = None,
) -> None:
    """Run a profile's notebooks and write them, with their results, to `build/PROFILE/`.

    All parameters are checked before anything runs. What is still valid is not run again. Machines that share no disk
    run a shard each; `mergekit-lite records merge` brings their records together.

    Example: `mergekit-lite run miniature --only eight_tasks`, or on a cluster
    `mergekit-lite run clip-vit-b-32 --engine "slurm partition=gpu minutes=240"`
    """
    from mergekit_lite.pipeline import profiles, runner

    root = profiles.find_root()
    for path in runner.run_profile(profiles.load(profile, root), root, only, force, shard=shard, engine=engine):
        typer.echo(path.relative_to(root))


@app.command()
@worded
def promote(
    profile: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile whose notebooks were run.")],
) -> None:
    """Check a profile's executed notebooks and copy them into the book, and with them the records behind them.

    A notebook gets in only if it ran to its end without an error, is up to date with its template, holds no path of
    this machine, and describes every figure in words. What came out as before stays as it is.

    Example: `mergekit-lite promote miniature`
    """
    from mergekit_lite.pipeline import profiles, promotion

    root = profiles.find_root()
    for name in profiles.load(profile, root).notebooks:
        executed, template = root / "build" / profile / f"{name}.ipynb", root / "notebooks" / f"{name}.ipynb"
        typer.echo(promotion.promote(executed, template, root / "book").relative_to(root))
    typer.echo(f"book/records: {len(promotion.promote_records(root / 'book'))} records")


@app.command()
@worded
def book(
    solutions: Annotated[
        bool, typer.Option(help="With the solutions of the exercises, or without, for students to read.")
    ] = True,
) -> None:
    """Build the book from its pages and the promoted notebooks; warnings are errors.

    Example: `mergekit-lite book`
    """
    from mergekit_lite.pipeline import profiles
    from mergekit_lite.pipeline.book import build_book

    root = profiles.find_root()
    typer.echo(build_book(root, with_solutions=solutions).relative_to(root))


@app.command()
@worded
def pretrain(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="The suite whose base weights to make: miniature.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write them; by default where the suite looks.")
    ] = None,
) -> None:
    """Make a suite's base weights again, by the recorded recipe. Takes about an hour on a CPU.

    Example: `mergekit-lite pretrain miniature --output base.safetensors`
    """
    if suite != "miniature":
        raise KitError(f"The base weights of '{suite}' are not made here. Suites that can be pre-trained: miniature.")
    from mergekit_lite.cache import check_writable

    output = at_home(output)
    if output is not None:
        if output.is_dir():
            raise KitError(f"{output} is a folder. Name a file in it, such as base.safetensors.")
        check_writable(output.parent)
    from mergekit_lite.suites.miniature import pretraining

    typer.echo(pretraining.pretrain(output))


@app.command()
@worded
def finetune(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="miniature, or one of the CLIPs: clip-vit-b-32.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to learn, by its name in the suite.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the result; by default `finetuned/SUITE/TASK`.")
    ] = None,
    steps: Annotated[int, typer.Option(help="How often the weights are changed.")] = 4000,
    learning_rate: Annotated[float, typer.Option(help="At the beginning; it falls to zero along a cosine.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the order of the images.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    device: Annotated[
        str | None, typer.Option(help="Such as `cuda` or `cpu`; by default a GPU if there is one.")
    ] = None,
) -> None:
    """Fine-tune an expert of your own on one task, by the recipe of the benchmark's experts (FusionBench).

    The same command resumes from the last checkpoint. The result is written with open_clip's names and, for CLIP, in
    the format of transformers too.

    Example: `mergekit-lite finetune clip-vit-b-32 dtd --output experts/dtd`
    """
    from mergekit_lite.suites import load_suite
    from mergekit_lite.suites.clip import finetune as tuning

    typer.echo(
        tuning.make_expert(
            load_suite(suite, device),
            task,
            output=at_home(output) or Path("finetuned") / suite / task,
            steps=steps,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            checkpoint_every=checkpoint_every,
        )
    )


@app.command()
@worded
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="An encoder written by `torch.save`.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default FILE with the suffix `.safetensors`.")
    ] = None,
    family: Annotated[str, typer.Option(help="Whose checkpoint it is; kept in the file.")] = "OC-8",
    suite: Annotated[
        str | None, typer.Option(metavar="SUITE", help="Make it an expert of the suite SUITE@FAMILY: of which CLIP.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="And of which task.")] = None,
) -> None:
    """Read a pickled image encoder, such as those of the task-vectors authors, and write it as safetensors.

    Nothing in the file is run: it may refer to tensors, containers and known modules, all else is refused.

    Example: `mergekit-lite convert DTD/finetuned.pt --suite clip-vit-b-32 --task dtd`
    """
    from mergekit_lite.suites import check_family
    from mergekit_lite.suites.clip import pickled
    from mergekit_lite.suites.clip.benchmark import MODELS
    from mergekit_lite.weight_files import LazyWeights
    from mergekit_lite.weights import weights_hash

    if not file.name:
        raise KitError(f"'{file}' is a folder. Name the checkpoint, such as finetuned.pt.")
    check_family(family)
    file, output = at_home(file) or file, at_home(output)
    if suite is not None or task is not None:
        from mergekit_lite.suites.clip.converted import place

        if output is not None:
            raise KitError("An expert of a suite has its place. Leave out --output, or --suite and --task.")
        output = place(suite, family, task)
    written = pickled.convert(file, output, family=family, model=MODELS.get(suite or ""), task=task)
    typer.echo(f"{written} {weights_hash(LazyWeights(written))}")


@app.command()
@worded
def doctor(
    profile: Annotated[
        str | None,
        typer.Argument(
            metavar="PROFILE", help="Predict what running this profile takes here; or look into a suite file."
        ),
    ] = None,
) -> None:
    """Show what this machine has and what is cached; with a profile, what it will take in time, memory and disk.

    Example: `mergekit-lite doctor miniature`
    """
    from mergekit_lite.pipeline.doctor import report as examination

    examination.show(profile)


@app.command()
@worded
def fetch(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A suite of real models, such as clip-vit-b-32, or a suite file.")
    ],
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="eight, fourteen, twenty (the default), or names with commas between."),
    ] = None,
    train: Annotated[bool, typer.Option(help="Bring training images too; few methods need them.")] = True,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Processes that decode; 0 is one per core.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes and what is there; download nothing.")
    ] = False,
    lock: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bring the commits, and the tasks, that another fetch wrote here."),
    ] = None,
) -> None:
    """Download a suite's weights and images ahead of time, check them, and show what is there.

    Run it again to resume where it stopped. Afterwards everything runs with `HF_HUB_OFFLINE=1`. The commits are written
    to a lock file; with `--lock` another machine brings exactly these, and takes them in every run from then on.

    Example: `mergekit-lite fetch clip-vit-b-32 --tasks eight`
    """
    from mergekit_lite.suites.clip import fetch as fetching
    from mergekit_lite.workers import cores

    if suite.endswith((".yaml", ".yml")):
        from mergekit_lite.pipeline.doctor import report as examination
        from mergekit_lite.suites.own.fetching import fetch_own

        if lock is not None:
            raise KitError("A suite file names revisions itself: leave out --lock.")
        if dry_run:
            examination.show(suite, tasks=tasks)
        else:
            fetch_own(suite, tasks, train=train, workers=workers or cores())
        return
    fetching.fetch_suite(suite, tasks, train=train, workers=workers or cores(), dry_run=dry_run, lock=at_home(lock))


app.command()(init)
app.command()(merge)
app.command()(evaluate)
