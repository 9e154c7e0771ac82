"""What a core makes of its log and of a store that does not quite fit it."""

from __future__ import annotations

from chain.codec import encode
from chain.types import Block, Certificate, Header, VoteKind
from consensus.simplex import messages as m
from tests.kit.core_bench import Bench, find


def chain_of(bench: Bench, length: int) -> list[Block]:
    blocks: list[Block] = []
    parent: Header = bench.genesis.header
    for view in range(1, length + 1):
        blocks.append(bench.block(parent, view))
        parent = blocks[-1].header
    return blocks


def logged(bench: Bench, blocks: list[Block], *certificates: Certificate) -> list[bytes]:
    notarized = [bench.certificate(VoteKind.NOTARIZE, b.header.view, b.hash()) for b in blocks]
    return [encode(r) for r in (*blocks, *notarized, *certificates)]


def test_certificates_of_final_blocks_do_not_come_back() -> None:
    """The store ends at a block that only a later one finalizes, as one written block by block
    could after a crash; the log still has every certificate of the epoch."""
    bench = Bench()
    blocks = chain_of(bench, 4)
    final = bench.certificate(VoteKind.FINALIZE, 4, blocks[3].hash())
    log = logged(bench, blocks, final)
    core = bench.fresh(log, tip=blocks[2].header)
    effects = core.start()
    assert find(effects, m.Send) == []  # nothing at or below the tip is asked for
    assert [e.block for e in find(effects, m.Validate)] == [blocks[3]]
    effects = core.validated(blocks[3].hash(), True)
    assert [e.blocks for e in find(effects, m.Deliver)] == [(blocks[3],)]
    assert not core.is_halted


def test_the_finalization_of_the_tip_alone_is_taken() -> None:
    bench = Bench()
    blocks = chain_of(bench, 2)
    core = bench.fresh(logged(bench, blocks[:2]), tip=blocks[1].header)
    core.start()
    final = bench.certificate(VoteKind.FINALIZE, 2, blocks[1].hash())
    effects = core.receive("node-1", final)
    assert find(effects, m.Deliver) == []
    assert not core.is_halted
    assert core.view == 3


def test_a_leader_shows_the_proof_of_a_tip_without_finalization() -> None:
    bench = Bench(own=3)
    blocks = chain_of(bench, 2)
    core = bench.fresh(logged(bench, blocks), tip=blocks[1].header)
    build = find(core.start(), m.Build)[0]
    block = bench.block(blocks[1].header, 3)
    effects = core.built(build.view, build.parent_hash, block)
    said = [x for e in find(effects, m.Broadcast) for x in e.messages]
    shown = [x.parent_notarization for x in said if hasattr(x, "parent_notarization")]
    assert [c.block_hash for c in shown if c is not None] == [blocks[1].hash()]
