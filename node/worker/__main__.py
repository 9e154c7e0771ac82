"""`python -m node.worker [nice]`: one worker, requests on stdin, answers on stdout, logs on stderr.

Ends when stdin does, so it cannot outlive its node. Ctrl-C on a terminal is for the node, which
then ends its worker.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from typing import BinaryIO

from learning.profile import configure, environment

os.environ.update(environment())  # before torch is imported, which the jobs do

from chain.errors import BlyanError
from node.worker.jobs import run_job
from node.worker.protocol import Message, pack_frame, read_frame

MAX_WAITING = 4  # requests read ahead; the client sends one at a time


def _read(stdin: BinaryIO, requests: queue.Queue[Message], going: threading.Event) -> None:
    """Feed the queue; at the end of stdin the node is gone, and so is any use of this process."""
    try:
        while (message := read_frame(stdin)) is not None:
            if message.get("job") == "pause":
                going.clear()
            elif message.get("job") == "go on":
                going.set()
            else:
                requests.put(message)
    except BlyanError as error:
        print(f"worker: {error}", file=sys.stderr)
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if len(sys.argv) > 1:
        os.nice(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print of a library must not break the frames

    going = threading.Event()
    going.set()

    def emit(message: Message) -> None:
        out.write(pack_frame(message))
        out.flush()
        if "event" in message:
            going.wait()  # here a job is paused

    requests: queue.Queue[Message] = queue.Queue(MAX_WAITING)
    reading = (sys.stdin.buffer, requests, going)
    threading.Thread(target=_read, args=reading, daemon=True).start()
    configure()
    while True:
        request = requests.get()
        try:
            emit({"event": "begun"})
            emit({"result": run_job(request, emit)})
        except BlyanError as error:
            emit({"error": type(error).__name__, "text": str(error)})
        except BrokenPipeError:
            os._exit(0)
        except Exception as error:
            traceback.print_exc()
            emit({"error": "", "text": f"{type(error).__name__}: {error}"})


main()
