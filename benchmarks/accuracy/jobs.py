r"""Runs side by side, each in a process, as soon as what they wait for is there."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from typing import TypeVar

from records import Record
from tqdm import tqdm

from accuracy.harness import prepare

Job = TypeVar('Job')


def run_jobs(
    ready: Callable[[], Iterable[Job]],
    run: Callable[[Job], Record],
    keep: Callable[[Job, Record], None],
    num_processes: int,
    threads: int,
    total: int,
) -> None:
    r"""Runs jobs until none is left. What one of them raises stops none of the others.

    Args:
        ready: The jobs that could begin now and are not done, the first to begin first.
        run: Does a job, in a process of its own.
        keep: Is given what each returned, in this process, one after the other.
        num_processes: How many jobs run at once; a single one runs in this process.
        threads: Threads of torch of each.
        total: How many jobs there are.

    Raises:
        RuntimeError: At the end, if jobs failed.
    """
    running: dict[Future[Record], Job] = {}
    failed: list[Job] = []
    with _executor(num_processes, threads) as pool, tqdm(total=total) as bar:
        while True:
            started = [*running.values(), *failed]
            waiting = [job for job in ready() if job not in started]
            for job in waiting[: num_processes - len(running)]:
                running[pool.submit(run, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                error = future.exception()
                if error is None:
                    keep(job, future.result())
                else:
                    failed.append(job)
                    tqdm.write(f'{job} failed: {type(error).__name__}: {error}')
                bar.update()
    if failed:
        raise RuntimeError(f'{len(failed)} runs failed: {failed}.')


def _executor(num_processes: int, threads: int) -> Executor:
    if num_processes == 1:
        return ThreadPoolExecutor(1, initializer=prepare, initargs=(threads,))
    # A fork would copy locks of threads that OpenMP has started here.
    spawn = multiprocessing.get_context('spawn')
    return ProcessPoolExecutor(num_processes, spawn, initializer=prepare, initargs=(threads,))
