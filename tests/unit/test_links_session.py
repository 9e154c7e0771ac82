"""The streams of a link, without sockets: what is sent when, and what ends how."""

import random
from collections.abc import Callable

import pytest

from chain.errors import UnreachableError, VerifyError
from node.net import limits as net_limits
from node.net.links import limits
from node.net.links.frames import Frame, Kind, LinkError, Reader, Status, header, message_frames
from node.net.links.session import Ask
from node.net.links.watch import Watch
from node.net.priority import Priority
from tests.kit.links import End, Pair, content

MIB = 1 << 20


@pytest.mark.parametrize("piece", [None, 1, 13, 65536])
def test_requests_both_ways(piece):
    pair = Pair()
    asks = [pair.one.ask(b"abc"), pair.one.ask(b""), pair.two.ask(b"from the other side")]
    pair.carry(piece)
    assert [content(ask) for ask in asks] == [b"cba", b"", b"edis rehto eht morf"]
    assert pair.one.session.is_idle
    assert pair.two.session.is_idle
    assert not pair.one.working + pair.two.working


@pytest.mark.parametrize("piece", [None, 13, 65536])
def test_messages_of_any_size_arrive_in_order(piece):
    pair, chance = Pair(), random.Random(3)
    sizes = (0, 1, 250, 65527, 65528, 200_000, net_limits.MAX_FRAME_BYTES, 7)
    sent = [chance.randbytes(size) for size in sizes]
    for data in sent:
        assert pair.one.session.send(data) == 0
    pair.two.session.send(b"back")
    pair.carry(piece)
    assert pair.two.messages == sent
    assert pair.one.messages == [b"back"]
    assert pair.one.session.is_idle


def test_a_message_never_waits_behind_content():
    """Whatever the content's priority, at most the frame under way goes first."""
    pair = Pair()
    pair.one.handler = lambda data: (Status.OK, [bytes(10 * MIB)])
    for _ in range(4):
        pair.two.ask(b"", priority=Priority.VOTE)
    pair.carry(frames=20)  # in the midst of the answers
    pair.one.session.send(b"a vote")
    assert pair.one.take() is not None
    data = b"".join(message_frames(b"another"))
    pair.one.session.send(b"another")
    assert pair.one.take() == data
    assert not pair.one.session.is_idle


def test_small_messages_of_one_moment_leave_in_one_write():
    pair = Pair()
    for number in range(10):
        pair.one.session.send(bytes([number]) * 250)
    assert pair.two.reader.feed(pair.one.take()) is None
    assert len(pair.two.messages) == 10
    assert pair.one.take() is None


def test_messages_that_a_peer_does_not_take_are_dropped_the_oldest_first(monkeypatch):
    monkeypatch.setattr(limits, "MESSAGES", 4)
    monkeypatch.setattr(limits, "MESSAGES_BYTES", 300_000)
    pair = Pair()
    large = bytes(200_000)
    assert pair.one.session.send(large) == 0
    pair.two.reader.feed(pair.one.take())  # under way: it goes on
    assert [pair.one.session.send(bytes([n])) for n in range(6)] == [0, 0, 0, 0, 1, 1]
    pair.carry()
    assert pair.two.messages == [large, b"\x02", b"\x03", b"\x04", b"\x05"]


@pytest.mark.parametrize(
    "body", [b"\x02x", b"\x01short", b"\x01", b"\xff"], ids=["2", "not full", "empty", "255"]
)
def test_a_part_of_a_message_that_no_honest_node_sends(body):
    pair = Pair()
    with pytest.raises(LinkError):
        pair.two.reader.feed(Frame(0, Kind.MESSAGE, body).encode())


def test_a_message_without_an_end_is_cut_off():
    pair = Pair()
    part = Frame(0, Kind.MESSAGE, b"\x01" + bytes(limits.BODY_BYTES - 1)).encode()
    for _ in range(net_limits.MAX_FRAME_BYTES // limits.BODY_BYTES):
        pair.two.reader.feed(part)
    with pytest.raises(LinkError, match="a message of over"):
        pair.two.reader.feed(part)
    assert pair.two.messages == []


def test_large_requests_and_answers_within_credit():
    pair = Pair()
    chance = random.Random(1)
    sent, answer = chance.randbytes(300_000), chance.randbytes(5 * MIB + 7)
    pair.two.handler = lambda data: (Status.OK, [answer[:1000], answer[1000:]])
    into = bytearray(6 * MIB)
    told: list[int] = []

    def progress(count: int) -> None:
        assert into[told[-1] if told else 0 : count] == answer[told[-1] if told else 0 : count]
        told.append(count)

    ask = pair.one.ask(sent, into=memoryview(into), progress=progress, most=6 * MIB)
    pair.carry()
    assert pair.two.seen == [sent]
    assert content(ask) == answer
    assert into[len(answer) :] == bytes(len(into) - len(answer)), "nothing behind the answer"
    assert told == sorted(set(told))
    assert told[-1] == len(answer)


def test_an_answer_s_sender_stops_without_credit():
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [bytes(10 * MIB)])
    ask = pair.one.ask(b"")
    pair.two.reader.feed(pair.one.take())
    sent = 0
    while (data := pair.two.take()) is not None:
        sent += len(data)
    assert limits.WINDOW_BYTES <= sent < limits.WINDOW_BYTES + 4096
    assert pair.two.session.outbox.left(ask.stream) == (10 * MIB - limits.WINDOW_BYTES, True)
    pair.two.session.outbox.credit(ask.stream, 1)
    data = pair.two.take()
    assert data == header(ask.stream, Kind.DATA, 1) + b"\0"


def test_the_window_grows_with_the_way_to_the_peer():
    session = Pair().one.session
    windows = {}
    for rtt_ms in (0.1, 30.0, 500.0):
        session.note_rtt(rtt_ms)
        windows[rtt_ms] = session.window
    assert windows == {0.1: limits.WINDOW_BYTES, 30.0: 3_750_000, 500.0: limits.MAX_WINDOW_BYTES}


def test_a_vote_passes_tiles_and_normal_things_do_too():
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [bytes(MIB)])
    pair.two.priority = Priority.BULK
    tiles = [pair.one.ask(b"tile") for _ in range(4)]
    pair.carry(frames=8)
    assert not any(ask.is_over for ask in tiles)
    pair.two.priority = Priority.NORMAL
    pair.two.handler = lambda data: (Status.OK, [bytes(100_000)])
    normal = pair.one.ask(b"normal")
    pair.two.priority = Priority.NORMAL
    vote = pair.two.ask(b"vote" * 50, priority=Priority.VOTE)
    pair.two.reader.feed(pair.one.take() + pair.one.take())
    sent = [pair.two.take() for _ in range(5)]
    assert sum(map(len, sent[:2])) < 500, "the vote and what opens the answer come first"
    assert b"vote" * 50 in sent[1]
    assert [stream_of(data) for data in sent[2:4]] == [normal.stream] * 2
    assert stream_of(sent[4]) in [t.stream for t in tiles]
    for data in sent:
        pair.one.reader.feed(data)
    pair.carry()
    assert content(vote) is not None
    assert all(len(content(ask)) == MIB for ask in tiles)


def stream_of(data: bytes) -> int:
    return int.from_bytes(data[:4])


def test_streams_of_one_priority_take_turns():
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [bytes(MIB)])
    asks = [pair.one.ask(b"x") for _ in range(3)]
    while (data := pair.one.take()) is not None:
        pair.two.reader.feed(data)
    pair.one.reader.feed(pair.two.take())  # what opens the answers
    streams = [stream_of(pair.two.take()) for _ in range(9)]
    assert streams == [a.stream for a in asks] * 3


@pytest.mark.parametrize("status", [Status.FAILED, Status.BUSY])
def test_refusals_say_why(status):
    pair = Pair()
    pair.two.refusal = (status, "no such thing")
    small, large = pair.one.ask(b"small"), pair.one.ask(bytes(MIB))
    pair.carry()
    for ask in (small, large):
        with pytest.raises(UnreachableError, match="no such thing"):
            content(ask)
    assert not pair.two.seen
    assert pair.one.session.is_idle
    assert pair.two.session.is_idle
    pair.two.refusal = None
    again = pair.one.ask(b"abc")
    pair.carry()
    assert content(again) == b"cba"


@pytest.mark.parametrize("frames", range(12))
def test_cancelling_at_any_moment_reaches_the_other_side(frames):
    """What was written is written; the rest is neither sent nor kept, and others go on."""
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [data, bytes(300_000)])
    into = bytearray(MIB)
    ask = pair.one.ask(bytes(200_000), into=memoryview(into), most=MIB)
    other = pair.one.ask(b"other")
    pair.carry(frames=frames)
    pair.one.session.cancel(ask, UnreachableError("given up"))
    assert ask.is_over
    before = bytes(into)
    pair.carry()
    assert bytes(into) == before, "nothing is written once the caller has its buffer back"
    with pytest.raises(UnreachableError, match="given up"):
        content(ask)
    assert content(other).startswith(b"other")
    assert pair.one.session.is_idle
    assert pair.two.session.is_idle
    assert not pair.two.working
    assert pair.two.session._request_bytes == 0


def test_cancelling_before_the_handler_answers():
    pair = Pair()
    pair.two.handler = lambda data: None
    ask = pair.one.ask(b"slow")
    pair.carry()
    (working,) = pair.two.working
    pair.one.session.cancel(ask, UnreachableError("given up"))
    pair.carry()
    assert not pair.two.working, "the handler is told"
    pair.two.answer(working, Status.OK, [b"too late"])
    pair.carry()
    assert pair.one.session.is_idle


def test_the_answerer_may_give_up():
    pair = Pair()
    pair.two.handler = lambda data: None
    ask = pair.one.ask(b"slow")
    pair.carry()
    pair.two.session.give_up(pair.two.working[0])
    pair.carry()
    with pytest.raises(UnreachableError, match="gave up"):
        content(ask)
    assert pair.one.session.is_idle
    assert pair.two.session.is_idle


def test_an_exception_of_progress_ends_the_request():
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [bytes(MIB)])

    for at in (1, MIB):

        def progress(count: int, at: int = at) -> None:
            if count >= at:
                raise VerifyError("a bad subtile")

        ask = pair.one.ask(b"", into=memoryview(bytearray(MIB)), progress=progress)
        pair.carry()
        with pytest.raises(VerifyError, match="a bad subtile"):
            content(ask)
        assert pair.one.session.is_idle
        assert pair.two.session.is_idle


def test_limits_of_what_is_under_way():
    pair = Pair()
    pair.two.handler = lambda data: None
    asks = [pair.one.ask(b"x") for _ in range(limits.STREAMS)]
    with pytest.raises(UnreachableError, match="under way"):
        pair.one.ask(b"x")
    pair.carry()
    assert len(pair.two.working) == limits.STREAMS
    pair.two.answer(pair.two.working[0], Status.OK, [])
    pair.carry()
    assert content(asks[0]) == b""
    pair.one.ask(b"x")
    room = limits.REQUESTS_BYTES
    pair = Pair()
    large = [pair.one.ask(bytes(room // 4)) for _ in range(5)]
    pair.two.reader.feed(pair.one.take())
    assert len(pair.two.working) == 4, "more bytes of requests than are admitted at a time"
    pair.carry()
    assert [ask.answer.status for ask in large] == [Status.OK] * 4 + [Status.BUSY]


def test_leaving_lets_what_is_under_way_finish():
    pair = Pair()
    pair.two.handler = lambda data: None
    ask = pair.one.ask(b"abc")
    pair.carry()
    pair.two.session.leave()
    pair.carry()
    with pytest.raises(UnreachableError, match="about to close"):
        pair.one.ask(b"more")
    pair.two.answer(pair.two.working[0], Status.OK, [b"done"])
    pair.carry()
    assert content(ask) == b"done"
    assert pair.one.session.is_idle
    assert pair.two.session.is_idle


def test_losing_the_link_ends_everything():
    pair = Pair()
    pair.two.handler = lambda data: None
    over: list[Ask] = []
    ask = pair.one.ask(b"abc", done=over.append)
    pair.carry()
    pair.one.session.lose("the link broke")
    pair.two.session.lose("the link broke")
    assert over == [ask]
    with pytest.raises(UnreachableError, match="broke"):
        content(ask)
    assert not pair.two.working


# --- time ------------------------------------------------------------------------------------


def answering(size: int) -> tuple[Pair, Ask]:
    pair = Pair()
    pair.two.handler = lambda data: (Status.OK, [bytes(size)])
    ask = pair.one.ask(b"")
    pair.two.reader.feed(pair.one.take())
    pair.one.reader.feed(pair.two.take())
    return pair, ask


def looking(
    end: End, act: Callable[[], object] = lambda: None, heard: int = 1
) -> tuple[LinkError, int]:
    """Look once a second, after `act`, until the link is to be closed: why, and in which second."""
    watch = Watch(end.session, 0.0)
    for second in range(1, 60):
        act()
        try:
            watch.look(float(second), second * heard)
        except LinkError as error:
            return error, second
    raise AssertionError("nothing was found wrong in a minute")


def test_an_answer_that_comes_too_slowly_costs_the_link():
    pair, ask = answering(MIB)
    error, second = looking(
        pair.one, lambda: pair.one.reader.feed(header(ask.stream, Kind.DATA, 1) + b"x")
    )
    assert "too slow" in str(error)
    assert error.points == limits.POINTS_SLOW
    assert second <= 8


def test_a_slow_answer_beside_a_quick_one_is_nobody_s_fault():
    pair, slow = answering(MIB)
    quick = pair.one.ask(b"")
    pair.two.reader.feed(pair.one.take())
    pair.one.reader.feed(pair.two.take())
    watch = Watch(pair.one.session, 0.0)
    part = int(limits.MIN_RATE_BYTES * limits.RATE_WINDOW_S) // 4
    for second in range(1, 20):
        pair.one.reader.feed(header(slow.stream, Kind.DATA, 1) + b"x")
        for _ in range(2):
            pair.one.reader.feed(header(quick.stream, Kind.DATA, part) + bytes(part))
        watch.look(float(second), second * 100)
    assert not slow.is_over


def test_time_that_we_slept_is_not_held_against_a_peer():
    pair, _ = answering(MIB)
    watch = Watch(pair.one.session, 0.0)
    watch.look(1.0, 10)
    watch.look(1000.0, 10)  # the process was suspended
    watch.look(1001.0, 11)
    pair.one.ask(bytes(100_000))
    pair.two.reader.feed(pair.one.take())
    watch = Watch(pair.two.session, 0.0)
    for moment in (1.0, 1000.0, 1001.0):
        watch.look(moment, int(moment))


def test_time_that_we_were_too_busy_to_read_is_not_held_against_a_peer():
    pair, _ = answering(MIB)
    watch = Watch(pair.one.session, 0.0)
    for turn in range(1, 6):  # 1 s of reading, 2.5 s of something else
        watch.look(3.5 * turn, turn)


def test_a_silent_link_is_closed_and_nobody_blamed():
    error, second = looking(Pair().one, heard=0)
    assert "silent" in str(error)
    assert error.points == 0
    assert second == limits.SILENCE_S + 1


def test_a_request_that_does_not_arrive_costs_the_link():
    pair = Pair()
    pair.one.ask(bytes(100_000))
    pair.two.reader.feed(pair.one.take())  # its opening alone
    error, second = looking(pair.two)
    assert "does not arrive" in str(error)
    assert second <= net_limits.READ_TIMEOUT_S + 2


def test_an_answer_that_is_not_taken_is_given_up():
    """Its asker grants nothing, or a byte now and then."""
    for grant in (0, 1):
        pair, ask = answering(10 * MIB)
        while pair.two.take() is not None:
            pass  # all that the first credit allows is written
        watch, second = Watch(pair.two.session, 0.0), 0
        assert pair.two.working
        while pair.two.working:
            second += 1
            if grant:
                pair.two.session.outbox.credit(ask.stream, grant)
                pair.two.take()
            watch.look(float(second), second)
        limit_s = net_limits.REPLY_TIMEOUT_S if grant else limits.STALL_S
        assert second == limit_s + 2
        assert pair.two.take() == Frame(ask.stream, Kind.CANCEL).encode()


def test_small_frames_in_masses_stop_the_reading():
    end = End(dialled=False)
    watch = Watch(end.session, 0.0)
    ping = Frame(0, Kind.PING, bytes(8)).encode()
    end.reader.feed(ping * limits.FRAMES_PER_S)
    assert not end.session.is_flooded
    end.reader.feed(ping)
    assert end.session.is_flooded
    watch.look(1.0, 1)
    assert not end.session.is_flooded
    assert len(end.take()) == 16, "only the last ping is answered"


def test_a_reader_takes_nothing_more_once_refused():
    end = End(dialled=False)
    reader = Reader(end.session)
    with pytest.raises(LinkError):
        reader.feed(header(2, Kind.CREDIT, 4) + bytes(4))
