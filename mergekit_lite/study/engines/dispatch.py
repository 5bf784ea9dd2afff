"""Hands out work to an engine and yields it in the order in which it ends."""

import queue
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

from mergekit_lite.study.engines import Engine, Handle

Item = TypeVar("Item")

PATIENCE = (0.005, 0.5)
"""Seconds between two looks at handles that must be asked: at first, and at most, when nothing happened for long."""


def outcomes(
    engine: Engine, function: Callable[..., Any], items: Iterable[tuple[Item, tuple[Any, ...]]]
) -> Generator[tuple[Item, Callable[[], Any]], None, None]:
    """Yield each item as soon as its work ended, with a function that returns the result or raises what went wrong.

    Args:
        engine: computes ``function(*arguments)``.
        function: of a module, so that it pickles.
        items: pairs of an item and the arguments for it; they are submitted in this order, the long ones first.

    What has not ended when the generator is closed (an interrupt, an error) is cancelled, where handles can be.
    """
    finished: queue.SimpleQueue[int] = queue.SimpleQueue()
    under_way: dict[int, tuple[Item, Handle]] = {}
    asked: dict[int, Handle] = {}  # those that do not tell by themselves
    try:
        with getattr(engine, "batch", nullcontext)():
            for number, (item, arguments) in enumerate(items):
                under_way[number] = item, engine.submit(function, *arguments)
        for number, (_, handle) in under_way.items():
            if hasattr(handle, "add_done_callback"):
                handle.add_done_callback(partial(_tell, finished, number))
            else:
                asked[number] = handle
        pause = PATIENCE[0]
        while under_way:
            for number in [number for number, handle in asked.items() if handle.done()]:
                del asked[number]
                finished.put(number)
                pause = PATIENCE[0]
            try:
                number = finished.get(timeout=pause) if asked else finished.get()
            except queue.Empty:
                pause = min(2 * pause, PATIENCE[1])
                continue
            item, handle = under_way.pop(number)
            yield item, handle.result
    finally:
        for _, handle in under_way.values():
            if hasattr(handle, "cancel"):
                with suppress(Exception):  # what goes wrong here is not what the caller should hear of
                    handle.cancel()


def _tell(finished: "queue.SimpleQueue[int]", number: int, _: Any) -> None:
    finished.put(number)
