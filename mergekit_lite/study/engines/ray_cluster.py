"""Cells as tasks of a Ray cluster; where no address is given, one of this machine is started and ended again.

Ray computes a task again when its worker or its node is lost. What the task itself did wrong comes back in words, see
`elsewhere`, and is not tried again.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
import torch

from mergekit_lite.errors import KitError, shown

OPTIONS = ("address", "cpus", "gpus", "retries", "patience")
"""``address`` of the head (``auto``, ``HOST:6379``, ``ray://HOST:10001``; by default that in ``RAY_ADDRESS``), ``cpus``
and ``gpus`` that a cell takes (by default 1 of either, and no GPU for a suite on the CPU), ``retries`` of a task whose
node was lost (3), and ``patience`` in seconds for the address to answer (20)."""


class Task:
    """A task of the cluster, as a handle."""

    def __init__(self, reference: "ray.ObjectRef[Any]", retries: int) -> None:
        self._reference, self._retries = reference, retries
        self._future = reference.future()

    def done(self) -> bool:
        """Return whether it has ended."""
        return bool(self._future.done())

    def add_done_callback(self, function: Callable[[Any], None]) -> None:
        """Have `function` called when it ends."""
        self._future.add_done_callback(function)

    def result(self) -> Any:
        """Return what it returned.

        Raises:
            KitError: Ray lost it, more often than it tries again.
        """
        try:
            return self._future.result()
        except ray.exceptions.RayError as error:
            first = str(error).strip().partition("\n")[0]
            raise KitError(
                f"Ray lost this cell and gave it up after {self._retries} retries ({type(error).__name__}: {first}). "
                "Look at `ray status`: most often a machine's memory ran out. Run this again; what is recorded stays."
            ) from error

    def cancel(self) -> None:
        """End it, also if it is being computed."""
        ray.cancel(self._reference, force=True)


class Cluster:
    """An engine whose tasks take so many CPUs and GPUs each."""

    def __init__(self, cpus: float, gpus: float, retries: int) -> None:
        self._retries = retries
        self._call = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_called)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Task:
        """Start ``function(*arguments)`` on the first node that is free."""
        return Task(self._call.remote(function, *arguments), self._retries)


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@contextmanager
def engine(device: torch.device, **options: str) -> Iterator[Cluster]:
    """Yield a Ray cluster for cells on `device`, with the `OPTIONS` given.

    Raises:
        KitError: an option is no number, the address does not answer, or no node has what a cell takes.
    """
    gpus = _number(options, "gpus", 1 if device.type == "cuda" else 0)
    if gpus and device.type != "cuda":
        raise KitError(
            "The engine 'ray' was asked for GPUs, but this process, which names the cells, has none: a record of a GPU "
            "has another key than one of a CPU. Start it on a node with a GPU, such as the head."
        )
    cpus, retries = _number(options, "cpus", 1), int(_number(options, "retries", 3))
    was_there = ray.is_initialized()
    if not was_there:
        _connect(options.get("address") or os.environ.get("RAY_ADDRESS") or "local", _number(options, "patience", 20))
    try:
        _check_room(cpus, gpus)
        yield Cluster(cpus, gpus, retries)
    finally:
        if not was_there:
            ray.shutdown()


def _connect(address: str, patience: float) -> None:
    if address not in ("auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if not (host and port.isdecimal()):
                raise OSError("it is no HOST:PORT")
            socket.create_connection((host, int(port)), timeout=patience).close()
        except OSError as error:
            raise KitError(
                f"The Ray cluster at {address} does not answer ({error}); this waited for up to {patience:.0f} s. "
                "Check `ray status` on its head, and the option address= or RAY_ADDRESS."
            ) from error
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        with suppress(Exception):
            ray.shutdown()
        first = str(error).strip().partition("\n")[0]
        raise KitError(
            f"No Ray cluster can be had at {shown(address)} ({first}). Start its head with "
            "`ray start --head`, or leave the address out to start one here."
        ) from error


def _check_room(cpus: float, gpus: float) -> None:
    """Check that one node at least can take a cell, or it would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        there = ", ".join(f"{node.get('CPU', 0):.0f} CPUs and {node.get('GPU', 0):.0f} GPUs" for node in nodes)
        raise KitError(
            f"No node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs for a cell; there are nodes with {there}."
        )


def _number(options: dict[str, str], name: str, default: float) -> float:
    try:
        value = float(options.get(name, default))
        if not 0 <= value < 1e6:
            raise ValueError
    except ValueError as error:
        raise KitError(f"The engine's option {name}={options[name]} is no number that fits. Write {name}=1.") from error
    return value
