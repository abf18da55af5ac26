"""Cells in several processes of this machine: each gets the next cell when it has finished one."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import torch

from steerdiff.errors import UserError
from steerdiff.scripts.runtime import ModelFlags

from .store import Store
from .work import Missing, bar_of, finish, loaded, model_flags, one_line, title

if TYPE_CHECKING:
    from .running import RunFlags

__all__ = ["run_workers"]

_GRACE = 5.0  # seconds that a worker gets to end


def run_workers(missing: Sequence[Missing], flags: RunFlags, store: Store, progress: str | None) -> dict[str, str]:
    """Compute and store cells in ``flags.jobs`` new processes, which share the threads.

    A worker that dies, killed or out of memory, fails its cell; another takes its place. Ctrl-C ends them all.

    Returns:
        Why cells failed, in one line, by the cell's key.

    Raises:
        UserError: The model cannot be loaded, or results cannot be stored.
    """
    jobs = min(flags.jobs, len(missing))
    total = flags.threads or torch.get_num_threads()
    shared = dataclasses.replace(flags, threads=max(1, total // jobs))
    pool = _Pool(flags=[model_flags(shared, index) for index in range(jobs)], store=store, waiting=list(missing))
    with bar_of(len(missing), progress) as bar:
        try:
            while pool.fill():
                bar.set_postfix_str(", ".join(title(worker.item.cell) for worker in pool.busy))
                bar.update(pool.collect())
        finally:
            pool.end()
    return pool.errors


@dataclass(eq=False)
class _Worker:
    """A process and the cell that it runs."""

    index: int  #: from 0; a worker that takes the place of a dead one has its number
    process: BaseProcess
    connection: Connection
    item: Missing


@dataclass(kw_only=True)
class _Pool:
    """The workers and what they have to do."""

    flags: list[ModelFlags]  #: the model of each worker
    store: Store
    waiting: list[Missing]  #: not handed out yet
    busy: list[_Worker] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)  #: by the cell's key

    def fill(self) -> bool:
        """Start workers as long as there are cells for them; say whether any work is left."""
        free = [index for index in range(len(self.flags)) if index not in [worker.index for worker in self.busy]]
        for index in free[: len(self.waiting)]:
            self.busy.append(self._start(index, self.waiting.pop(0)))
        return bool(self.busy)

    def _start(self, index: int, item: Missing) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.flags[index], self.store), daemon=True)
        with _deaf_to_interrupts():
            process.start()
        theirs.close()  # so that its death is the end of the pipe
        worker = _Worker(index=index, process=process, connection=ours, item=item)
        _send(worker, item)
        return worker

    def collect(self) -> int:
        """Wait until a worker has something to say; return the number of cells that are finished by it."""
        ready = wait([worker.connection for worker in self.busy])
        workers = [worker for worker in self.busy if worker.connection in ready]
        for worker in workers:
            self._hear(worker)
        return len(workers)

    def _hear(self, worker: _Worker) -> None:
        key = worker.item.cell.key
        try:
            kind, text = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(_GRACE)
            self.errors[key] = f"the process that ran it {_death(worker.process.exitcode)}"
            self.busy.remove(worker)
            worker.connection.close()
            return
        if kind == "stop":
            raise UserError(text)
        if text is not None:
            self.errors[key] = text
        if self.waiting:
            worker.item = self.waiting.pop(0)
            _send(worker, worker.item)
        else:
            self.busy.remove(worker)
            worker.connection.close()  # it ends at the end of the pipe

    def end(self) -> None:
        """End the workers that are still running."""
        for worker in self.busy:
            worker.process.kill()
        for worker in self.busy:
            worker.process.join(_GRACE)
            worker.connection.close()


def _serve(connection: Connection, flags: ModelFlags, store: Store) -> None:
    """Run the cells that come through the pipe until it ends."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item: Missing = connection.recv()
            try:
                message: tuple[str, Any] = ("done", finish(item, loaded(flags, item.provenance["weights"]), store))
            except Exception as error:  # the model cannot be loaded or nothing can be stored: no cell could do better
                message = ("stop", one_line(error))
            connection.send(message)


def _send(worker: _Worker, item: Missing) -> None:
    """Hand out a cell; a worker that is dead already is noticed where its answer is awaited."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        worker.connection.send(item)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name}); was the memory full?"
    return f"ended with exit code {code}; its last words are above"


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C, which every process of the terminal gets; we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
