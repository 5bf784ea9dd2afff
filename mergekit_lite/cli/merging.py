"""The command `merge`: checkpoints on disk or on the hub become one model."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from mergekit_lite.cli.wording import at_home, worded
from mergekit_lite.errors import KitError


@worded
def merge(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="A method, such as ties_merging; FILE.py:NAME for one of your own; a mergekit YAML file.",
        ),
    ],
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLACE", help="The model before fine-tuning: a file, a folder, or hf:ORG/REPO[@REVISION]."
        ),
    ] = None,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PLACE", help="A fine-tuned model; give one for each expert.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="For the merged model; a new folder.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter of the method, such as scaling=0.3."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(metavar="SUITE", help="For methods that look at data: a suite, or a file that describes one."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="TASKS", help="Of the suite: a set such as eight, or names with commas between."),
    ] = None,
    names: Annotated[
        Literal["fused", "split"] | None,
        typer.Option(help="Queries, keys and values as one matrix (the default) or three; spectral methods differ."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Tensors to copy from the base, such as 'classifier.*'; may be repeated."),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Of a CLIP, merge text tower and logit scale too.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of methods that draw at random.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the result to the hub; a new repository is private.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Such as `cuda` or `cpu`; the CPU by default, with --suite a GPU if there is one."),
    ] = None,
) -> None:
    """Merge fine-tuned models into one, in the format of the base, with a card that says how it was made.

    Weights are read as safetensors (file, folder, shards with an index, hub) or, without running what is in them, as
    pickles of torch; safetensors are written. What is not merged is copied from the base and listed.

    Example: `mergekit-lite merge ties_merging --base base/ --expert a=run1/ --expert b=b.safetensors -o merged/`
    """
    if output is None and not dry_run:
        raise KitError("Say where the merged model goes: -o FOLDER. With --dry-run nothing is written.")
    folder = at_home(output)
    from rich.console import Console

    from mergekit_lite.merge import asking, folders, plan, pushing, running

    asked = asking.Wish(
        method=method,
        bases=base or [],
        experts=asking.named(expert or []),
        parameters=asking.parsed(parameter or []),
        suite=suite,
        tasks=tasks,
        names=names,
        exclude=exclude or [],
        whole=whole,
        seed=seed,
        device=device,
    )
    if push is not None:
        pushing.check_repository(push)
    try:
        job = asking.job_of(asked)
        if folder is not None:
            folders.check_free(folder, job.files)
        planned = plan.planned(job)
        if dry_run or folder is None:
            Console(soft_wrap=True).print(plan.table(planned))
            return
        typer.echo(plan.short(planned))
        told = running.merged_folder(planned, folder, asking.command_of(asked, folder))
    except KeyboardInterrupt:
        typer.echo("Interrupted. Nothing was written.", err=True)
        raise typer.Exit(130) from None
    for note in told:
        typer.echo(note)
    typer.echo(f"Merged: {folder}")
    if push is None:
        typer.echo(f"To share it: hf upload ORG/NAME {shlex.quote(str(folder))}")
        return
    try:
        typer.echo(f"Pushed: {pushing.push_folder(folder, push)}")
    except KeyboardInterrupt:
        typer.echo(f"Interrupted. {pushing.kept(folder, push)}", err=True)
        raise typer.Exit(130) from None
