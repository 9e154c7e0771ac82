"""The node's clock goes forward whatever the machine's clock does."""

from __future__ import annotations

from node.clock import Clock

S = 1_000_000_000


class Machine:
    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000 * S, 5 * S

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def pass_time(self, ns: int) -> None:
        self.wall += ns
        self.steady += ns


def test_it_follows_the_wall_clock() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.pass_time(S // 3)
        assert clock.now_ms() == machine.wall // 1_000_000


def test_a_step_back_never_moves_it_back_and_is_absorbed() -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now_ms()
    machine.wall -= 60 * S
    for i in range(1, 601):
        machine.pass_time(S)
        now = clock.now_ms()
        assert now - before == i * 900  # nine tenths of the time, until the minute is absorbed
    machine.pass_time(10 * S)
    assert clock.now_ms() == machine.wall // 1_000_000


def test_a_step_ahead_is_followed_slowly() -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now_ms()
    machine.wall += 3600 * S
    machine.pass_time(10 * S)
    assert clock.now_ms() - before == 11_000


def test_a_steady_clock_that_stumbles_does_no_harm() -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now_ms()
    machine.steady -= S
    assert clock.now_ms() == before
