"""Every limit of the protocol in one place: its value, its unit and its reason.

A limit here is part of the wire format: a decoder refuses what exceeds it, so raising one
is a protocol upgrade. Limits that a network may choose stand in `genesis.json` instead.
"""

from __future__ import annotations

# --- bytes -------------------------------------------------------------------
MAX_BLOCK_BYTES = 2 * 1024 * 1024  # one block; larger payloads travel as blobs
MAX_TX_BYTES = 64 * 1024  # one transaction; a manifest of a 1,000-shard delta fits
MAX_OPENING_TX_BYTES = 260 * 1024  # a custody_opening: one subtile and its path; no other kind
MAX_MESSAGE_BYTES = MAX_BLOCK_BYTES + 256 * 1024  # a proposal: block plus certificates
MAX_PROPOSAL_BYTES = 16 * 1024  # what a proposal would put in force: documents of a model's version
MAX_EVIDENCE_BYTES = 96 * 1024  # of a block, its leader's room: two certificates of 512 fit
MAX_BLOB_BYTES = 64 * 1024 * 1024  # a delta payload, a checkpoint or one dataset chunk
MAX_SNAPSHOT_CHUNK_BYTES = 4 * 1024 * 1024  # one chunk of a state snapshot
MAX_CHUNK_BYTES = 1024 * 1024  # one dataset chunk: a fetch is retried in this unit
MAX_NEWCOMER_DATASET_BYTES = 64 * 1024 * 1024  # one dataset, hosted by its submitter alone

# --- tiles (bytes) -----------------------------------------------------------
TILE_BYTES = 4 * 1024 * 1024  # unit of ownership, aggregation and transfer
SUBTILE_BYTES = 256 * 1024  # unit of proof, custody challenge and fraud proof
MAX_SHARD_HEADER_BYTES = 1024 * 1024  # JSON before a shard file's data; thousands of tensors fit
MAX_PROOF_SUBTILES = 4096  # shown by one set proof: 1 GiB of data, checked in a third of a second
MAX_SET_NODES_BYTES = 2 * 1024 * 1024  # of one set proof: 65,536 hashes, and it fits a message
MERKLE_ARITY = 8  # fewer levels and hash calls; proofs are larger than binary ones

# --- deltas (docs/spec/delta.md) ------------------------------------------------
CHUNK_ELEMENTS = 4096  # elements that share centroids and a top-k count; 16 make a subtile
MAX_DENSITY = CHUNK_ELEMENTS  # kept entries a chunk: all of them
MAX_DELTA_HEADER_BYTES = 1024 * 1024  # lengths of 200,000 sections; parsing costs 10 times that
MAX_SECTION_BYTES = SUBTILE_BYTES // 2 + SUBTILE_BYTES // 4 // CHUNK_ELEMENTS  # a dense one
MAX_STEP_BYTES = TILE_BYTES  # one tile's step on disk; a longer one is worth less than its tile
MAX_PAYLOAD_BYTES = MAX_BLOB_BYTES - 16  # of a delta that travels: its seal has 16
DELTA_UNIT_BITS = 28  # a delta value is an integer of units of 2**-28, so below 1.0 in size

# --- counts ------------------------------------------------------------------
MAX_DEPTH = 12  # nesting of arrays in any message: no type has more, so none that decodes
MAX_BLOCK_TXS = 4096  # transactions in one block
MAX_VALIDATORS = 512  # a certificate's bitmap is 64 bytes
MAX_EVIDENCE = 16  # pieces of evidence in one block
MAX_LIGHT_HEADERS = 64  # from a header to the next that has a finalization: rarely more than 2
MAX_HEADERS = 256  # in one answer: 100 KiB
MAX_NULLIFICATIONS = 64  # nullified views shown with one proposal
MAX_ADDRESSES = 8  # addresses announced by one node
MAX_SHARDS = 65_536  # shards of one model
MAX_TILES_PER_SHARD = 4096  # 16 GiB a shard
MAX_DELTAS = 64  # deltas aggregated into one tile
MAX_LEARNERS = 256  # declared for one round
WATCHERS = 19  # of an update: with 1/3 of the stake all are liars once in 10**9 draws
MAX_COMMITTEE = 64  # members drawn for one committee
MAX_STATE_HASHES = 1024  # state hashes in one manifest
MAX_DATASETS = 256  # datasets named by one manifest
MAX_TILE_CHANGES = 256  # tiles in one tile_update; more are split over several
MAX_SLICES = 128  # loss slices in one PoL vote
MAX_FINDINGS = 64  # findings in one audit report
MAX_DATASET_DOCUMENTS = 65_536  # documents in one dataset manifest
MAX_DATASET_CHUNKS = 65_536  # chunks in one dataset manifest
MAX_SUBTILES_PER_CHALLENGE = 16  # subtiles named by one custody event
DEFAULT_CAPACITY_TILES = 65_536  # of a node that announces none (0): 256 GiB
MAX_SUBTILE_SIBLINGS = 14  # of a subtile's path to its tile's root: two levels of 16 leaves
MAX_REPLICAS = 16  # custodians of one tile that a custody event asks
MAX_CUSTODY_DISPUTES = 8  # open at once: all can be answered in time with one or two a block
MAX_PROPOSALS = 16  # that are voted on or wait for their height
MAX_OTHER_PROPOSALS = 8  # of these, beside one a validator: deposits cannot shut those out
MAX_SETTINGS = 64  # parameters that differ from genesis: more than there are
MAX_LIST_LEAVES = 16_777_216  # hashes under one list root (batches, parts of a training state)
MAX_SNAPSHOT_PARTS = 16_384  # chunks of one snapshot: 32 to 64 GiB of state
MAX_PROOF_NODES = 256  # siblings of one sparse Merkle proof
MAX_TX_SIBLINGS = 12  # of a transaction in its block: log2 of MAX_BLOCK_TXS

# --- time and money ----------------------------------------------------------
MAX_TIME_MS = 2**53 - 1  # of a block: exact in any language, and deadlines after it fit 64 bits
MAX_GRAINS = 2**62  # in all of a genesis: no balance, bond or sum of them leaves 64 bits

# --- text (bytes of UTF-8) ---------------------------------------------------
MAX_NAME = 128  # shard names, titles
MAX_DOCUMENT_NAME = 512  # path of one document in a dataset
MAX_ADDRESS = 256  # one multiaddr
MAX_LICENSE = 64  # an SPDX expression
MAX_REASON = 256  # a rejection reason
