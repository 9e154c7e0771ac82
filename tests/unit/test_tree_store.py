"""The state on disk: loaded as it is needed, checked when it is, of any depth, beside a writer."""

from __future__ import annotations

import gc
import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest

from chain import store_tree, tree, tree_pages
from chain.codec import encode
from chain.errors import InvariantError, StorageError, VerifyError
from chain.hashes import STATE_KEY, ZERO_HASH, Hash32
from chain.store import ChainStore, FinalBlock
from chain.tree import StateTree, verify_state_proof
from chain.tree_pages import Ref
from chain.types import Height
from tests.reference import tree as reference
from tests.unit.test_store import Chain, make_block


def content(count: int, salt: bytes = b"") -> dict[bytes, bytes]:
    return {b"k/%06d" % i: hashlib.sha256(b"%d" % i + salt).digest() for i in range(count)}


def grow(store: ChainStore, *batches: dict[bytes, bytes | None], start: int = 0) -> None:
    """A block for each batch of changes."""
    parent = ZERO_HASH
    for height, changes in enumerate(batches, start):
        state = store.load_state().set_many(changes)
        block = make_block(height, parent, state.root)
        parent = block.hash()
        store.commit_all((FinalBlock(block, parent, None, (), changes, (), state),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain.db"


def sql(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return db.execute(statement, values).fetchall()
    finally:
        db.close()


# --- lazily -------------------------------------------------------------------------


def loaded(state: StateTree) -> int:
    """How many pages of a tree are in memory."""

    def count(ref: Ref) -> int:
        if ref.page is None:
            return 0
        return 1 + sum(count(node) for node in ref.page if isinstance(node, Ref))

    return count(state.top)


def test_a_read_loads_its_path_alone(path: Path) -> None:
    with ChainStore(path) as store:
        grow(store, dict(content(5000)))
    with ChainStore(path) as store:
        state = store.load_state()
        assert loaded(state) == 1
        assert state.get(b"k/000007") == content(8)[b"k/000007"]
        assert loaded(state) <= 4
        assert list(state.keys(b"k/00499")) == [b"k/00499%d" % i for i in range(10)]
        assert loaded(state) <= 4  # the order of keys is not in the pages


def test_memory_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read and written, by however many blocks, no more pages stay than the cache has
    room for."""
    monkeypatch.setattr(store_tree.TreeFile.__init__, "__defaults__", (None, 0, 50))
    with ChainStore(path) as store:
        grow(store, dict(content(5000)))
        state = store.load_state()
        assert loaded(state) <= 50
        for key in list(content(5000))[::7]:
            assert state.get(key) is not None
            assert loaded(state) <= 50
        assert len(list(state.subtree(0, 0).leaves())) == 5000
        changed = dict(content(600, b"other"))
        tip = store.tip()
        assert tip is not None
        new = state.set_many(changed)
        block = make_block(1, tip.hash, new.root)
        store.commit_all((FinalBlock(block, block.hash(), None, (), changed, (), new),))
        assert loaded(new) <= 50
        assert dict(new.items()) == content(5000) | changed
        assert loaded(new) + loaded(state) <= 100


def test_what_is_not_final_stays_in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_tree.TreeFile.__init__, "__defaults__", (None, 0, 1))
    with ChainStore(path) as store:
        grow(store, dict(content(2000)))
        first = store.load_state().set_many(dict.fromkeys(content(500), b"1"))
        second = first.set_many(dict.fromkeys([*content(400), b"new"], b"2"))
        assert second.get(b"k/000450") == b"1"
        assert second.get(b"k/000350") == b"2"
        assert len(list(second.items())) == 2001


# --- damage -------------------------------------------------------------------------


def test_a_damaged_page_is_named_when_it_is_read(path: Path) -> None:
    """One byte of any page: everything else still reads, and `check_state` finds it."""
    with ChainStore(path) as store:
        grow(store, dict(content(3000)) | {b"long": b"l" * 5000})
        assert store.check_state() == 3001
        root = store.load_state().top.number
    numbers = [n for (n,) in sql(path, "SELECT number FROM state_pages ORDER BY number")]
    for number in (numbers[0], numbers[len(numbers) // 2], numbers[-2]):
        assert number != root
        ((good,),) = sql(path, "SELECT data FROM state_pages WHERE number = ?", number)
        assert isinstance(good, bytes)
        bad = good[:40] + bytes([good[40] ^ 1]) + good[41:]
        sql(path, "UPDATE state_pages SET data = ? WHERE number = ?", bad, number)
        with ChainStore(path) as store:
            state = store.load_state()
            wrong = {error for key in [*content(3000), b"long"] if (error := fails(state, key))}
            assert len(wrong) == 1
            assert f"page {number} of the state tree does not have its checksum" in wrong.pop()
            assert sum(1 for key in content(3000) if not fails(state, key)) > 2700
            with pytest.raises(StorageError, match=rf"page {number} of .*`blyan-node doctor`"):
                store.check_state()
        sql(path, "UPDATE state_pages SET data = ? WHERE number = ?", good, number)
    with ChainStore(path) as store:
        assert store.check_state() == 3001


def fails(state: StateTree, key: bytes) -> str:
    """What a read says that fails."""
    try:
        state.get(key)
    except StorageError as error:
        return str(error)
    return ""


def test_a_page_of_another_place_or_time_is_refused(path: Path) -> None:
    """A whole page with a good checksum, but not the one that belongs there."""
    with ChainStore(path) as store:
        grow(store, dict(content(300)), {b"k/000001": b"changed"})
        root = store.load_state().top.number
    for page, says in ((root, "is not the one that belongs here"), (-1, "is missing")):
        sql(path, "UPDATE state_versions SET page = ? WHERE height = 0", page)
        with ChainStore(path) as store:
            old = store.tree_at(0)
            assert old is not None
            assert f"page {page} of the state tree {says}" in fails(old, b"k/000001")
            assert store.load_state().get(b"k/000001") == b"changed"


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM state_keys WHERE key = CAST('k/000009' AS BLOB)", "299 keys"),
        ("INSERT INTO state_keys VALUES (x'00', 0)", "key 00 is listed but is not in"),
    ],
)
def test_an_index_of_keys_that_lies_is_found(path: Path, statement: str, says: str) -> None:
    with ChainStore(path) as store:
        grow(store, dict(content(300)))
    sql(path, statement)
    with ChainStore(path) as store, pytest.raises(StorageError, match=says):
        store.check_state()


# --- depth --------------------------------------------------------------------------


class Identity:
    """A hash that anyone can grind: a key is its own path."""

    @staticmethod
    def hash(key: bytes) -> Hash32:
        return Hash32(key.ljust(32, b"\0"))


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Keys whose paths agree with the first one's in 0, 1, … 255 bits, and it."""
    monkeypatch.setattr(tree_pages, "STATE_KEY", Identity)
    monkeypatch.setattr(tree, "STATE_KEY", Identity)
    real = reference.h
    monkeypatch.setattr(
        reference, "h", lambda name, data: data if name == "state-key" else real(name, data)
    )
    return [bytes(32)] + [(1 << 255 - i).to_bytes(32, "big") for i in range(256)]


def test_a_tree_as_deep_as_paths_are_long(path: Path, ground: list[bytes]) -> None:
    batch: dict[bytes, bytes | None] = dict.fromkeys(ground, b"v")
    expected = reference.root(dict.fromkeys(ground, b"v"))
    with ChainStore(path) as store:
        grow(store, batch)
        assert store.load_state().root == expected
    with ChainStore(path) as store:
        assert store.check_state() == 257
        state = store.load_state()
        for key in (ground[0], ground[-1], ground[-2], ground[1], ground[130]):
            proof = state.prove(key)
            assert verify_state_proof(state.root, key, b"v", proof)
            assert len(encode(proof)) < 256 * 34 + 16
        assert len(state.prove(ground[0]).siblings) == 256
        pair = ground[0], ground[-1]  # alone they hang on 255 branches with nothing beside
        less = state.set_many(dict.fromkeys(ground[1:-1]))
        assert less.root == reference.root(dict.fromkeys(pair, b"v"))
        assert [key for key, _ in less.subtree(0, 255).leaves()] == list(pair)
        one = less.set_many({ground[0]: None})
        assert one.root == reference.root({ground[-1]: b"v"})
        assert one.prove(ground[-1]).siblings == ()


# --- importing ----------------------------------------------------------------------


def ordered(items: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return sorted(items.items(), key=lambda item: STATE_KEY.hash(item[0]))


@pytest.mark.parametrize("count", [0, 1, 4, 5, 40, 3000])
def test_an_imported_state_is_the_same(path: Path, count: int) -> None:
    """Page for page: where a state comes from leaves no trace."""
    items = content(count) | {b"long": b"l" * 500}
    leaves = ordered(items)
    block = make_block(77, ZERO_HASH, StateTree.empty().set_many(items).root)
    with ChainStore(path) as store:
        with store.import_state() as load:
            for i in range(0, len(leaves), 100):
                load.add(leaves[i : i + 100])
            load.finish(block, block.hash())
        state = store.load_state()
        assert list(state.items()) == sorted(items.items())
        assert (store.first_height(), store.oldest_state()) == (77, 77)
        assert store.check_state() == count + 1
        grow_on = state.set_many({b"more": b"1", b"k/000003": None})
        after = make_block(78, block.hash(), grow_on.root)
        store.commit(after, after.hash(), None, (), {b"more": b"1", b"k/000003": None})
        assert b"more" in store.load_state()
    with ChainStore(path.with_name("grown.db")) as other:
        grow(other, dict(items))
        pages = "SELECT count(*) FROM state_pages"
        whole = len(list(other._states.numbers(0)))
        assert sql(path.with_name("grown.db"), pages) == [(whole,)]
    with ChainStore(path) as store:
        assert len(list(store._states.numbers(77))) == whole


def test_an_import_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that was cut off, whose pages are there, nor one of another state."""
    monkeypatch.setattr("chain.tree_build.FLUSH_ROWS", 10)
    leaves = ordered(content(3000))
    block = make_block(5, ZERO_HASH, StateTree.empty().set_many(content(3000)).root)
    with ChainStore(path) as store:
        with store.import_state() as load:
            load.add(leaves[:2000])
            assert sql(path, "SELECT count(*) > 10 FROM state_pages") == [(1,)]
        assert sql(path, "SELECT count(*) FROM state_pages") == [(0,)]
        with store.import_state() as load:
            load.add(leaves[1:])
            with pytest.raises(VerifyError, match="not the one of block 5"):
                load.finish(block, block.hash())
        for bad in ([leaves[1], leaves[0]], [leaves[2000], leaves[3]], [leaves[0], leaves[0]]):
            with store.import_state() as load, pytest.raises(VerifyError, match="order"):
                load.add(bad)
        with pytest.raises(KeyboardInterrupt):
            _cut_off(store, leaves[:2000])
        assert store.load_state().root == ZERO_HASH
    sql(path, "INSERT INTO state_pages VALUES (1, x'00')")  # as a process leaves it that is killed
    with ChainStore(path) as store:
        assert store.tip() is None
        with store.import_state() as load:
            load.add(leaves)
            load.finish(block, block.hash())
        assert store.check_state() == 3000
        assert (
            len(list(store._states.numbers(5)))
            == sql(path, "SELECT count(*) FROM state_pages")[0][0]
        )
        with pytest.raises(InvariantError, match="empty store"), store.import_state():
            pass


def _cut_off(store: ChainStore, leaves: list[tuple[bytes, bytes]]) -> None:
    with store.import_state() as load:
        load.add(leaves)
        raise KeyboardInterrupt


def test_what_an_import_left_is_in_nobody_s_way(path: Path) -> None:
    with ChainStore(path):
        pass
    sql(path, "INSERT INTO state_pages VALUES (1, x'00')")
    with ChainStore(path) as store:
        grow(store, dict(content(20)))
        assert store.check_state() == 20
        numbers = sorted(store._states.numbers(0))
        assert sql(path, "SELECT number FROM state_pages ORDER BY 1") == [(n,) for n in numbers]


# --- versions and readers -------------------------------------------------------------


def test_versions_are_kept_by_height_and_by_time(path: Path) -> None:
    """The blocks of these tests are a millisecond apart: whichever is longer counts."""
    for versions, ms, oldest in ((2, 0, 7), (0, 5, 4), (3, 5, 4), (6, 1, 3), (99, 0, 0)):
        file = path.with_name(f"{versions}-{ms}.db")
        with ChainStore(file, versions, ms) as store:
            grow(store, *({b"a": b"%d" % i} for i in range(10)))
            assert store.oldest_state() == oldest
            gc.collect()
    with ChainStore(path) as store:
        grow(store, *({b"a": b"%d" % i} for i in range(10)))
    with ChainStore(path, 2) as store:  # an archive that is one no longer: a few with each block
        tip = store.tip()
        assert tip is not None
        block = make_block(10, tip.hash, store.load_state().root)
        store.commit(block, block.hash(), None, (), {})
        assert store.oldest_state() == 8
        assert store.tree_at(7) is None


def test_readers_keep_what_they_hold(path: Path) -> None:
    """On other threads, while blocks come and versions go."""
    wrong: list[str] = []
    done = threading.Event()

    def read(store: ChainStore) -> None:
        while not done.is_set():
            height = store.oldest_state()
            state = store.tree_at(height)
            if state is None:
                continue
            for _ in range(3):
                found = {int(value) for _, value in state.items(b"k/")}
                if found != {height} or len(list(state.keys(b"new/"))) != height:
                    wrong.append(f"at {height}: {sorted(found)}")
                proof = state.prove(b"k/7")
                if not verify_state_proof(state.root, b"k/7", b"%d" % height, proof):
                    wrong.append(f"at {height}: a proof that does not hold")

    with ChainStore(path, 1) as store:
        batches = [
            {b"k/%d" % i: b"%d" % height for i in range(60)} | {b"new/%d" % height: b""}
            for height in range(1, 60)
        ]
        grow(store, {b"k/%d" % i: b"0" for i in range(60)})
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        tip = store.tip()
        assert tip is not None
        parent = tip.hash
        for height, changes in enumerate(batches, 1):
            state = store.load_state().set_many(changes)
            block = make_block(height, parent, state.root)
            parent = block.hash()
            store.commit_all((FinalBlock(block, parent, None, (), changes, (), state),))
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert store.header(Height(59)) is not None


def test_a_state_made_elsewhere_is_not_taken_for_ours(chain_path: Path) -> None:
    """Only a tree that was made from the tip's is stored as it is; else the changes are applied."""
    with ChainStore(chain_path) as store:
        chain = Chain(store)
        chain.add(changes={b"a": b"1"})
        base = store.load_state()
        twice = base.set_many({b"b": b"2"}).set_many({b"c": b"3"})
        memory = StateTree.empty().set_many({b"a": b"1", b"b": b"2", b"c": b"3"})
        for state in (twice, memory):
            assert not state.follows(base)
        changes: dict[bytes, bytes | None] = {b"b": b"2", b"c": b"3"}
        block = make_block(1, chain.blocks[0].hash(), twice.root)
        store.commit_all((FinalBlock(block, block.hash(), None, (), changes, (), twice),))
        assert store.check_state() == 3
        wrong = make_block(2, block.hash(), ZERO_HASH)
        with pytest.raises(InvariantError, match="root of its state"):
            store.commit(wrong, wrong.hash(), None, (), {b"d": b"4"})


@pytest.fixture
def chain_path(tmp_path: Path) -> Path:
    return tmp_path / "chain.db"
