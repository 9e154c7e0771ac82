"""One thread that does jobs in order, while the one that gives them goes on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Lane:
    """Jobs run in the order they came, on a thread of the lane's own.

    Hashing, reading and writing large buffers release the interpreter lock, so lanes share the
    cores. After a job has failed those that follow are not run, and the error is raised to whoever
    gives the next or closes the lane.
    """

    def __init__(self, name: str, waiting: int) -> None:
        """`waiting`: jobs that may wait before `do` blocks."""
        self._jobs: queue.Queue[tuple[Job, Job] | None] = queue.Queue(waiting)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Job, after: Job = lambda: None) -> None:
        """Have a job done after those before it. Raises the error of an earlier one.

        `after` runs when the job has run, has failed, or will not run at all.
        """
        self._raise()
        self._jobs.put((job, after))

    def close(self) -> None:
        """Wait until all is done. Raises the error of a job that failed."""
        self.stop()
        self._raise()

    def stop(self) -> None:
        """Wait until all is done or the lane has failed; raises nothing."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def cancel(self) -> None:
        """Run no further job, and wait for the one that runs."""
        self._error = self._error or RuntimeError("cancelled")
        self.stop()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, after = given
            try:
                try:
                    if self._error is None:
                        job()
                finally:
                    after()
            except BaseException as error:  # told to the giver, who is on another thread
                self._error = self._error or error
