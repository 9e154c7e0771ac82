"""The parts of the network port that need no network."""

import pytest
import trio

from chain.codec import encode
from chain.errors import DecodeError, InputError
from node.net import limits, peers, streams
from node.net.bridge import Bridge, Metrics
from node.net.gossip import message_id
from node.net.identity import Address
from node.net.link import MESSAGE, PING, PONG, Frames, Link, Outbox
from node.net.requests import Service

A, B = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44


def frames_of(data: bytes, step: int) -> list[tuple[int, bytes]]:
    frames, found = Frames(), []
    for start in range(0, len(data), step):
        found += frames.feed(data[start : start + step])
    return found


def test_frames_are_the_same_however_they_are_cut():
    metrics = Metrics()
    sent = [(MESSAGE, b""), (PING, bytes(8)), (MESSAGE, bytes(300)), (PONG, b"12345678")]
    outbox = Outbox(lambda: None, metrics)
    for kind, body in sent:
        outbox.push(kind, body)
    data = outbox.take()
    assert outbox.take() == b""
    for step in (1, 2, 3, 5, 7, 64, len(data)):
        assert frames_of(data, step) == sent


@pytest.mark.parametrize(
    "data",
    [bytes(5), b"\0\0\0\x01\x03", b"\0\0\0\x08\x01" + bytes(7), b"\0\0\0\x0a\x02" + bytes(9)],
)
def test_frames_that_are_not_the_protocol(data):
    with pytest.raises(streams.StreamError):
        Frames().feed(data)


def test_a_frame_over_the_limit_is_refused_by_its_length_alone():
    with pytest.raises(streams.TooLargeError):
        Frames().feed((limits.MAX_FRAME_BYTES + 2).to_bytes(4) + b"\0")


def test_a_full_outbox_drops_the_oldest_and_wakes_once():
    metrics, woken = Metrics(), []
    outbox = Outbox(lambda: woken.append(1), metrics)
    for i in range(limits.LINK_QUEUE_FRAMES + 3):
        outbox.push(MESSAGE, i.to_bytes(4))
    assert len(woken) == 1
    assert metrics.snapshot() == {"link_dropped": 3}
    data = b""
    while part := outbox.take():
        assert len(part) <= limits.WRITE_BYTES
        data += part
    bodies = [int.from_bytes(body) for _, body in Frames().feed(data)]
    assert bodies == list(range(3, limits.LINK_QUEUE_FRAMES + 3))
    outbox.push(MESSAGE, b"")
    assert len(woken) == 2


def test_large_frames_are_bounded_by_bytes():
    metrics = Metrics()
    outbox = Outbox(lambda: None, metrics)
    size = limits.MAX_FRAME_BYTES
    for _ in range(5):
        outbox.push(MESSAGE, bytes(size))
    assert metrics.snapshot()["link_dropped"] == 5 - limits.LINK_QUEUE_BYTES // (size + 5)
    assert len(outbox.take()) == size + 5


def test_round_trips_are_smoothed_and_foreign_nonces_ignored():
    async def scenario() -> None:
        link = Link("peer", Bridge(Metrics()), Metrics())
        link.ping()
        ((kind, nonce),) = Frames().feed(link.outbox.take())
        assert kind == PING
        link.pong(bytes(8))  # the year zero
        link.pong(b"\xff" * 8)  # the far future
        assert link.rtt_ms is None
        link.pong(nonce)
        assert link.rtt_ms is not None
        assert 0 <= link.rtt_ms < 1000

    trio.run(scenario)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/127.0.0.1/tcp/4001/p2p/{A}",
        f"/ip6/::1/tcp/4001/p2p/{A}",
        "/dns4/node.example/tcp/65535",
        "/dns/localhost/tcp/1",
        "/ip4/0.0.0.0/tcp/0",
    ],
)
def test_addresses_round_trip(text):
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/::1/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/1/",
        "/ip4/127.0.0.1/tcp/1/p2p/",
        "/ip4/127.0.0.1/tcp/+1",
        "/ip4/127.0.0.1/udp/1",
        "/unix/socket",
        "/dns4/" + "x" * 300 + "/tcp/1",
    ],
)
def test_addresses_that_are_none(text):
    with pytest.raises(InputError):
        Address.parse(text)


def test_scopes_of_addresses():
    loop, wild, far = "/ip4/127.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/2", "/ip4/9.9.9.9/tcp/3"
    told = (loop, wild, far, "nonsense")
    assert [str(a) for a in peers.seen_from(told, "127.0.0.1")] == [loop, "/ip4/127.0.0.1/tcp/2"]
    assert [str(a) for a in peers.seen_from(told, "8.8.8.8")] == ["/ip4/8.8.8.8/tcp/2", far]
    connected = [(A, [Address.parse(loop), Address.parse(far)]), (B, [Address.parse(loop)])]
    local = peers.parse_answer(peers.answer([wild], connected, "asker", "127.0.0.1"))
    assert local.own == (wild,)
    assert {p.peer_id: p.addresses for p in local.peers} == {A: (loop,), B: (loop,)}
    remote = peers.parse_answer(peers.answer([wild], connected, "asker", "8.8.8.8"))
    assert {p.peer_id: p.addresses for p in remote.peers} == {A: (far,)}
    assert peers.parse_answer(peers.answer([], connected, A, "127.0.0.1")).peers[0].peer_id == B


def test_exchange_is_decoded_strictly():
    data = encode(peers.PeersRequest(("/ip4/127.0.0.1/tcp/1",)))
    assert peers.parse_request(data).addresses == ("/ip4/127.0.0.1/tcp/1",)
    for bad in (b"", data[:-1], data + b"\0", encode(peers.PeersAnswer((), ()))):
        with pytest.raises(DecodeError):
            peers.parse_request(bad)


def test_violations_fade_and_refusals_end():
    violations = peers.Violations()
    assert not violations.add(A, 60, now=0.0)
    assert violations.points(A, now=limits.VIOLATION_HALF_LIFE_S) == pytest.approx(30)
    assert not violations.add(A, 60, now=limits.VIOLATION_HALF_LIFE_S)
    start = limits.VIOLATION_HALF_LIFE_S
    assert violations.add(A, 60, now=start)
    assert violations.is_banned(A, start + limits.BAN_S - 1)
    assert not violations.is_banned(B, start)
    assert not violations.is_banned(A, start + limits.BAN_S)
    assert violations.points(A, start + limits.BAN_S) == 0
    for i in range(limits.MAX_KNOWN + 10):
        violations.add(f"peer {i}", 1 + i, now=start)
    assert violations.points("peer 0", start) == 0, "the least guilty is forgotten first"


def test_the_book_is_bounded_and_keeps_what_is_wanted():
    book = peers.Book(own=A)
    address = Address.parse("/ip4/127.0.0.1/tcp/1")
    assert book.learn(A, [address]) is None
    wanted = book.learn(B, [address], wanted=True)
    assert wanted is not None
    for port in range(1, 3 * limits.MAX_ADDRESSES):
        book.learn(B, [Address("ip4", "127.0.0.1", port)])
    assert len(wanted.addresses) == limits.MAX_ADDRESSES
    assert wanted.wanted
    for i in range(limits.MAX_KNOWN + 10):
        book.learn(f"peer {i}", [address])
    assert len(book.known) == limits.MAX_KNOWN
    gone = book.known["peer 0"]
    gone.failures, gone.lost_at = 1, 100.0
    wanted.failures, wanted.lost_at = 1, 100.0
    later = 100.0 + limits.FORGET_S
    assert not book.give_up(gone, later - 1)
    assert book.give_up(gone, later)
    assert not book.give_up(wanted, later)
    assert book.learn("newcomer", [address]) is not None
    assert B in book.known


def test_backoff_grows_to_its_cap():
    delays = [peers.backoff_s(n, loopback=True, hearsay=False, jitter=1.0) for n in range(40)]
    assert delays == sorted(delays)
    assert delays[0] == limits.BACKOFF_FIRST_S
    assert delays[-1] == limits.BACKOFF_LOOPBACK_S
    assert (
        peers.backoff_s(40, loopback=False, hearsay=False, jitter=0.0)
        == limits.BACKOFF_MOST_S * 0.75
    )
    slow = peers.backoff_s(40, loopback=True, hearsay=True, jitter=1.0)
    assert slow == limits.BACKOFF_HEARSAY_MOST_S


def test_hearsay_does_not_displace_where_a_peer_was_met():
    """A liar who names eight wrong addresses must not part peers who know each other."""
    book = peers.Book(A)
    sure = Address("ip4", "127.0.0.1", 1)
    known = book.learn(B, [sure], wanted=True)
    assert known is not None
    assert not known.is_hearsay
    for port in range(2, 2 + 3 * limits.MAX_ADDRESSES):
        book.learn(B, [Address("ip4", "127.0.0.1", port)])
    assert len(known.addresses) == limits.MAX_ADDRESSES
    assert known.to_dial()[:2] == [
        sure.with_peer(B),
        Address("ip4", "127.0.0.1", port).with_peer(B),
    ]
    other = book.learn("12D3KooW" + "C" * 44, [sure])
    assert other is not None
    assert other.is_hearsay


def test_message_ids_tell_topic_and_content_apart():
    ids = {message_id(t, d) for t in (["a"], ["ab"], ["a", "b"], []) for d in (b"", b"b", b"ab")}
    assert len(ids) == 12
    assert message_id(["a"], b"x") == message_id(["a"], b"x")


def test_slots_of_a_service_are_left_for_those_who_have_none():
    async def nothing(peer: str, data: bytes) -> bytes:
        return b""

    service = Service("/test/1", nothing, 64, 16)

    def take(peer: str) -> int:
        return sum(service.enter(peer) for _ in range(20))

    assert [take(peer) for peer in "abcde"] == [8, 4, 2, 1, 1]
    assert take("f") == 0
    for _ in range(8):
        service.leave("a")
    assert take("f") == 4
    assert [take(peer) for peer in "abcdef"] == [2, 0, 0, 1, 0, 0]
    one = Service("/test/2", nothing, 64, 1)
    assert one.enter("a")
    assert not one.enter("b")
