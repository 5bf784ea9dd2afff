"""Work side by side: one process per core with one thread each, which is how tiny models run fastest on a CPU."""

import atexit
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from mergekit_lite.machine import let_go

Setup = TypeVar("Setup")
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    setup: Callable[[], Setup],
    work: Callable[[Setup, Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    gpus: int = 0,
) -> Generator[tuple[Item, Callable[[], Result]], None, None]:
    """Yield each item as soon as it is finished, with a function that returns its result or raises what went wrong.

    Each process calls `setup` once and hands what it returned to ``work(setup(), item)``. With one worker (or one item)
    everything happens in this process. With several `gpus` each process takes one of them for its device "cuda", in
    turn. Everything handed over must pickle. When the parent is interrupted or killed,
    its workers end at once. What went wrong holds on to no memory: `machine.let_go`.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        threads = torch.get_num_threads()
        prepared = cache(setup)
        try:
            torch.set_num_threads(1)
            for item in items:
                yield item, partial(_done, prepared, work, item)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    alive, keep = context.Pipe(duplex=False)
    turn = context.Value("i", 0) if gpus > 1 else None
    with ProcessPoolExecutor(
        workers, context, initializer=_start, initargs=(pickle.dumps(setup), alive, workers, turn, gpus)
    ) as pool:
        try:
            futures: dict[Future[Result], Item] = {pool.submit(partial(_work, work), item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result
        except BaseException:  # an interrupt above all: do not wait for what is being computed
            keep.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            keep.close()
            alive.close()


def beside() -> int:
    """Return how many processes work side by side, this one included, and share the memory: 1 if it has no others."""
    return _beside


_beside = 1

_setup: Callable[[], Any]  # of this worker process


@cache
def _prepared() -> Any:
    return _setup()


def _start(setup: bytes, alive: Connection, workers: int = 1, turn: Any = None, gpus: int = 0) -> None:
    global _setup, _beside
    _beside = workers
    if turn is not None:
        with turn.get_lock():
            mine, turn.value = turn.value % gpus, turn.value + 1
        torch.cuda.set_device(mine)

    def watch_parent() -> None:
        alive.poll(None)  # nothing is ever sent: this returns when the parent closes its end, or is killed
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers quietly

    # Collections while modules load go through all of torch and find nothing, for a third of the time to load a suite.
    # At the end Python would take torch apart object by object, for another 1.5 s.
    gc.disable()
    _setup = pickle.loads(setup)  # loads the suite's modules
    gc.enable()
    atexit.register(os._exit, 0)
    torch.set_num_threads(1)


def _work(work: Callable[[Any, Any], Any], item: Any) -> Any:
    return _done(_prepared, work, item)


def _done(prepared: Callable[[], Setup], work: Callable[[Setup, Item], Result], item: Item) -> Result:
    """Return what `work` makes of the item; if it fails, all its memory is free again before the next item."""
    try:
        return work(prepared(), item)
    except BaseException as error:
        let_go(error)
        raise
