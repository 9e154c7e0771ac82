"""Rows of `bench.learning` beside others: a real network of this project, its learners and all its
proofs, against hivemind's averaging and bare gloo's of the same model, data, seeds and steps.

Ours runs first. Its model and its learners' optimizers after some rounds, text, each learner's
batches in each further round (they follow from seeds that the chain drew) and the rule of training
go to the others' peers, which do the same steps. All have one thread a process and this machine's
processors to share. Clocks start with the first further round, when everybody is up. `given` is the
loss that averaging in fp32 has after three quarters of its rounds. Ours has what its genesis asks
for between rounds, momentum of its own too; what others do is what averaging does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.averaging_peer import Floats, cut
from bench.learning_net import Ours, learn
from bench.learning_round import keys_of
from bench.learning_task import (
    LONG,
    LONG_DENSITY,
    LONG_MOMENTUM_PPM,
    LONG_TEXT_BYTES,
    LONG_WARM,
    Side,
    Task,
)
from bench.measure import Row, at_least, at_most
from bench.socket_bytes import SocketBytes, family
from chain.errors import BlyanError
from learning.evaluate import holdout_windows, window_losses
from learning.sizes import SIZES
from learning.spec import NANO_MODEL, NANO_TRAINING

HIVEMIND = "BLYAN_HIVEMIND_PYTHON"
LIMIT_S, TRIES = 500.0, 2  # hivemind stalls now and then
FEWER, SLOWER = 15.0, 1.5  # times fewer bytes, times the wall time
MATCHMAKING_S = 1.0  # hivemind's; see docs/perf.md
_ROOT = Path(__file__).resolve().parent.parent

_WARM_DENSITY = 1024  # kept entries of 4096 in the rounds before the clock starts
_RULE = replace(
    LONG,
    error_feedback_ppm=1_000_000,
    densities=(*[_WARM_DENSITY] * LONG_WARM, LONG_DENSITY),
)
_SHORT = replace(_RULE, steps=10, batch=4, densities=(*[_WARM_DENSITY] * 23, 102))
_TINY = Task(
    "tiny",
    SIZES["tiny"].model,
    _RULE,
    warm=LONG_WARM,
    rounds=20,
    text_bytes=LONG_TEXT_BYTES,
    asks="wall",
    more=3,
    momentum_ppm=LONG_MOMENTUM_PPM,  # chosen by `--only momentum`
)
TASKS = {
    "tiny": _TINY,
    "nano": replace(_TINY, name="nano", model=NANO_MODEL, training=replace(_RULE, batch=16)),
    # As `suite20` (bench/learning_curves.py)
    "short": Task(
        "short",
        replace(NANO_MODEL, layers=3, width=128, expert_width=136),
        _SHORT,
        warm=23,
        rounds=20,
        text_bytes=9_000_000,
        asks="bytes",
        more=5,
    ),
}
SMALL_TASK = Task(
    "small",
    replace(NANO_MODEL, layers=1, width=16, heads=2, experts=2, expert_width=16, context=16),
    replace(NANO_TRAINING, steps=2, segment_steps=2, batch=2),
    warm=1,
    rounds=2,
    text_bytes=100_000,
    asks="wall",
    momentum_ppm=LONG_MOMENTUM_PPM,
)


@dataclass(frozen=True, slots=True)
class Others:
    """Peers that average by other means."""

    by: str
    compression: str
    python: str

    @property
    def name(self) -> str:
        return self.by if self.by == "gloo" else f"{self.by}_{self.compression}"


def peer_rows(task: Task, hivemind: str | None) -> Iterator[Row]:
    """A task by ours, bare gloo and hivemind in fp32 and 8 bits. `hivemind`: an interpreter that
    has it, if not the one that the environment names; without it no row is met but a first that
    says so."""
    python = hivemind or os.environ.get(HIVEMIND)
    if python is None or not _has_hivemind(python):
        yield at_least("hivemind_is_here", 0.0, "of 1", 1.0)
        return
    everyone = (
        Others("gloo", "fp32", sys.executable),
        Others("hivemind", "fp32", python),
        Others("hivemind", "8bit", python),
    )
    ours = learn(task)
    sides = {others.name: _tried(task, ours, others) for others in everyone}
    yield from rows(task, ours, sides)


def _tried(task: Task, ours: Ours, others: Others) -> Side:
    for _ in range(TRIES - 1):
        try:
            return run(task, ours, others)
        except BlyanError as error:
            print(f"{error}\nonce more", file=sys.stderr)
    return run(task, ours, others)


def _has_hivemind(python: str) -> bool:
    if shutil.which(python) is None:
        return False
    return subprocess.run([python, "-c", "import hivemind"], capture_output=True).returncode == 0


def rows(task: Task, ours: Ours, others: dict[str, Side]) -> Iterator[Row]:
    """What is compared; `others` by name."""
    gloo, fp32, coarse = (others[n] for n in ("gloo", "hivemind_fp32", "hivemind_8bit"))
    elements, of = task.model.parameters, f"{task.name}_"
    given = gloo.losses[3 * task.rounds // 4 - 1]
    is_timed = task.asks == "wall"
    sides = (ours.side, gloo, fp32, coarse)
    for side in sides:
        yield at_most(f"{of}loss_{side.name}", side.losses[task.rounds - 1], "nats", None)
    yield at_most(f"{of}given", given, "nats", None)
    reached = {side.name: side.reaches(given) for side in sides}
    slowest = [r for r in (reached[fp32.name], reached[coarse.name]) if r is not None]
    best = min(slowest) if slowest else fp32.at_s[-1]
    for side in sides:
        at, took = reached[side.name], side.at_s[-1]
        if side is ours.side:
            target = SLOWER * best if is_timed else None
            row = at_most(f"{of}wall_{side.name}", at or took, "s", target, reached["gloo"])
            yield replace(row, met=False) if is_timed and at is None else row
        else:
            yield at_most(f"{of}wall_{side.name}", at or took, "s", None)
    for side in sides:
        yield at_most(f"{of}round_{side.name}", side.round_s, "s", None, side.train_s)
    for phase, lasted in ours.phases_s.items():
        floor = ours.side.train_s if phase == "train" else None
        yield at_most(f"{of}phase_{phase}", lasted, "s", None, floor)
    for name, used in zip(("nodes", "learners"), ours.cpu_s, strict=True):
        yield at_most(f"{of}cpu_{name}", used, "s", None)
    theirs = coarse.bytes_sent / elements
    yield at_most(f"{of}bytes_hivemind_8bit", theirs, "B", None, 1.5)
    yield at_most(f"{of}bytes_hivemind_fp32", fp32.bytes_sent / elements, "B", None, 6.0)
    yield at_most(f"{of}bytes_gloo", gloo.bytes_sent / elements, "B", None, 6.0)
    for name, sent in (("payload", ours.payload), ("relayed", ours.relayed)):
        yield at_most(f"{of}bytes_{name}", sent / elements, "B", None)
        yield at_least(f"{of}fewer_{name}", theirs * elements / sent, "x", None)
    yield from _to_equal_loss(task, ours, coarse)
    yield at_most(f"{of}bytes_all_links", ours.side.bytes_sent / elements, "B", None)
    yield at_least(f"{of}fewer_all_links", theirs * elements / ours.side.bytes_sent, "x", None)
    yield at_most(f"{of}bytes_own_node", ours.api / elements, "B", None)
    above = ours.side.losses[task.rounds - 1] - coarse.losses[-1]
    yield at_most(f"{of}above_hivemind", above, "nats", None)
    yield at_least(f"{of}merged", 100 * ours.merged, "%", None)
    yield at_most(f"{of}differing", ours.differing, "elements", 0.0)
    for side in sides[1:]:
        yield at_most(f"{of}spread_{side.name}", 100 * side.spread, "%", None)


def _to_equal_loss(task: Task, ours: Ours, coarse: Side) -> Iterator[Row]:
    """How many times fewer bytes leave a peer of ours until the loss is what hivemind's is at its
    end, whatever rounds that takes: of the payloads, and of these with all their copies."""
    of, rounds = f"{task.name}_", ours.side.rounds_to(coarse.losses[-1])
    for number, loss in enumerate(ours.side.losses[task.rounds :], task.rounds + 1):
        yield at_most(f"{of}loss_{ours.side.name}_{number}", loss, "nats", None)
    yield at_most(f"{of}rounds_to_equal_loss", rounds or task.our_rounds, "rounds", None)
    asked = "relayed" if task.asks == "bytes" else "payload"
    for name, sent in (("payload", ours.payload), ("relayed", ours.relayed)):
        fewer = coarse.bytes_sent * task.rounds / (sent * (rounds or task.our_rounds))
        target = FEWER if name == asked else None
        row = at_least(f"{of}fewer_{name}_to_equal_loss", fewer, "x", target)
        yield replace(row, met=False) if target is not None and rounds is None else row


# --- others ----------------------------------------------------------------------------------


def run(task: Task, ours: Ours, others: Others) -> Side:
    """Peers of another system do the steps that ours has done."""
    with tempfile.TemporaryDirectory(prefix="blyan-bench-others-") as name:
        directory = Path(name)
        numbers = sorted(ours.seeds)[: task.rounds]
        plan = {
            "model": task.model.to_json(),
            "training": task.training.to_json(),
            "seeds": {number: ours.seeds[number].hex() for number in numbers},
            "learners": [keys_of(i).account.public.hex() for i in range(task.learners)],
        }
        (directory / "plan.json").write_text(json.dumps(plan))
        (directory / "train.bin").write_bytes(ours.data.train)
        (directory / "base.f32").write_bytes(ours.start)
        for i, state in enumerate(ours.states):
            (directory / f"{i}.state").write_bytes(state)
        with _Peers(task, others, directory) as peers:
            said, sent = peers.rounds()
        models = [_models(directory, i, numbers) for i in range(task.learners)]
    windows = holdout_windows(ours.data.holdout, task.model.context)
    losses = [
        float(window_losses(task.model, cut(m.tobytes(), task.model), windows).mean())
        for m in models[0]
    ]
    first = models[0][-1].astype(np.float64)
    away = max(float(np.linalg.norm(each[-1] - first)) for each in models)
    return Side(
        others.name,
        tuple(losses),
        tuple(max(row["at_s"] for row in each) for each in said),
        median(row["train_s"] for each in said for row in each),
        sent / (task.learners * task.rounds),
        away / float(np.linalg.norm(first)),
    )


class _Peers:
    """The processes of one run, each in a group of its own, which is killed on leaving."""

    def __init__(self, task: Task, others: Others, directory: Path) -> None:
        self._task, self._name = task, others.name
        self._log = (directory / "log.txt").open("wb")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
        command = [others.python, "-m", "bench.averaging_peer", "--by", others.by]
        command += ["--compression", others.compression, "--matchmaking-s", str(MATCHMAKING_S)]
        command += ["--directory", str(directory), "--of", str(task.learners)]
        self._processes = [
            subprocess.Popen(
                [*command, "--index", str(i)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                start_new_session=True,
            )
            for i in range(task.learners)
        ]
        self._timer = threading.Timer(LIMIT_S, self._kill)
        self._bytes = SocketBytes(lambda: family(p.pid for p in self._processes))

    def __enter__(self) -> _Peers:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._kill()
        for process in self._processes:
            process.communicate()
        self._log.close()

    def _kill(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def rounds(self) -> tuple[list[list[dict[str, Any]]], int]:
        """What each peer said of each round, and the bytes that all have sent in them."""
        self._tell(0, [])
        address = self._hear(0)["address"]
        for i in range(1, self._task.learners):
            self._tell(i, address)
            self._hear(i)
        everyone = range(self._task.learners)
        for i in everyone:
            self._hear(i)  # ready
        self._bytes.start()
        for i in everyone:
            self._tell(i, "go")
        said = []
        for _ in range(self._task.rounds):
            said.append([self._hear(i) for i in everyone])
            self._bytes.look()
        return said, self._bytes.sent()

    def _tell(self, index: int, what: Any) -> None:
        to = self._processes[index].stdin
        assert to is not None
        to.write(json.dumps(what).encode() + b"\n")
        to.flush()

    def _hear(self, index: int) -> dict[str, Any]:
        source = self._processes[index].stdout
        assert source is not None
        line = source.readline()
        if not line:
            log = Path(self._log.name).read_text(errors="replace")[-2000:]
            raise BlyanError(f"a peer of {self._name} has ended, or stalled {LIMIT_S:g} s: {log}")
        found: dict[str, Any] = json.loads(line)
        return found


def _models(directory: Path, index: int, rounds: Iterable[int]) -> list[Floats]:
    """A peer's weights after each round."""
    return [np.fromfile(directory / f"{index}-{n}.f32", np.float32) for n in rounds]
