"""Doing jobs in worker processes, one torch thread each, so that results do not depend on how many there are."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

import torch

from tenfold.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def crew(workers: int) -> Generator[Executor | None]:
    """Worker processes for several `work_off`; None, for work in this process, where one is asked for.

    When the block is left early (Ctrl-C), what has not begun is dropped and what runs is waited for.
    """
    if workers <= 1:
        yield None
        return
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        # torch is imported once, not by every worker.
        context.set_forkserver_preload(["fairfd.data.assembly.step"])
        _start_server()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def work_off(work: Callable[[Job], Result], jobs: Sequence[Job], pool: Executor | None) -> Iterator[Result]:
    """Yield `work(job)` for every job as results come in, in any order.

    Args:
        work: a function of a module, so that processes can be told of it.
        jobs: what to do.
        pool: workers from `crew`; None works here.

    Raises:
        UserError: a job cannot be sent to another process, or a process died.
    """
    if pool is None or not jobs:
        yield from _here(work, jobs)
        return
    try:
        pickle.dumps(jobs[0])
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"the forgers cannot be sent to worker processes ({error}); define them in a module, or use workers=1"
        ) from error
    try:
        with undisturbed():
            futures = [pool.submit(work, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended without a word (out of memory?); run again with fewer workers: what is done is kept"
        ) from error


def _here(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            yield work(job)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def undisturbed() -> Generator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block.

    Workers are started while jobs are handed over: the server that starts them would print a traceback about a request
    that was broken off. Outside the main thread, which alone is interrupted, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        # Before what the interrupt may have done to the block, such as workers that are gone.
        if caught:
            signal.raise_signal(caught[0])


def _start_server() -> None:
    """Start the server of the workers deaf to Ctrl-C and SIGTERM, which a terminal sends to all of its processes.

    It would end with a traceback while it imports torch, and leave the parent without an answer.
    """
    # Its start, which is part of the server's, would unblock both.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """A worker: one torch thread; Ctrl-C is for the parent, which lets running jobs end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        # Blocked in the server that this process is a fork of.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """Wait for the end of the process that this one works for, and end too: a killed one cannot say goodbye.

    Without this, a worker waits for jobs for ever, and keeps the server of the workers alive.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
