"""Every limit of the network port: its value, its unit and its reason.

They are this node's own, not part of a wire format, except where the comment says so.
"""

from __future__ import annotations

from chain import limits

# --- bytes -------------------------------------------------------------------
MAX_GOSSIP_BYTES = 1024 * 1024 - 4096  # wire: one gossip message; libp2p drops an RPC over 1 MiB
MAX_FRAME_BYTES = limits.MAX_MESSAGE_BYTES  # wire: one consensus message (a full proposal fits)
MAX_RESPONSE_BYTES = limits.MAX_BLOB_BYTES + 64 * 1024  # wire: any answer to a request
MAX_EXCHANGE_BYTES = 64 * 1024  # wire: one peer exchange, either way
LINK_QUEUE_BYTES = 8 * 1024 * 1024  # waiting for one peer; three full proposals fit
WRITE_BYTES = 64 * 1024  # one write on a stream: a yamux frame, so that streams share the link

# --- counts ------------------------------------------------------------------
LINK_QUEUE_FRAMES = 1024  # waiting for one peer; the oldest is dropped, votes are retransmitted
LINK_INBOX_FRAMES = 512  # received from one peer and not yet handled; beyond it we stop reading
MAX_CONNECTIONS = 64  # in and out together, besides those with pinned peers
MAX_PINNED = 200  # validators of this epoch and the next that are kept besides
WANTED_CONNECTIONS = 32  # beyond it, peers learned from others are not dialled
MAX_STREAMS_PER_PEER = 64  # opened by one peer at a time; honest ones hold three or four
MAX_JUDGING = 1024  # gossip messages with the application at a time; beyond it they are dropped
MAX_JUDGING_PER_PEER = 64  # the same, brought by one peer; beyond it we stop reading from it
MAX_JUDGING_BYTES = 64 * 1024 * 1024  # of such messages at a time; beyond it they are dropped
MAX_JUDGING_BYTES_PER_PEER = 4 * 1024 * 1024  # brought by one peer; beyond it we stop reading
MAX_REJECTED = 1024  # ids of refused gossip remembered, so that it is judged once
MAX_CALLS = 1024  # operations of the asyncio side under way in the trio thread
MAX_KNOWN = 256  # peers whose addresses are remembered
MAX_ADDRESSES = limits.MAX_ADDRESSES  # wire: addresses of one peer
MAX_EXCHANGED = 64  # wire: peers in one answer of the peer exchange
MAX_DOUBTFUL = 2  # addresses dialled on the word of others, of one peer and attempt
MAX_NEWS = 8  # peers that one answer may make us know: whoever lies has us dial no faster
GOSSIP_QUEUE = 1024  # RPCs waiting for one peer in pubsub (libp2p's own 32 loses bursts)
GOSSIP_RATE = 1000  # messages a second, topic and forwarder; beyond it pubsub drops
PUBLISH_RATE = 500  # own publishes a second and topic: paced below what others accept

# --- the DHT (docs/spec/network.md, "Provider records") -------------------------
MAX_DHT_BYTES = 64 * 1024  # wire: one message; 40 peers with 8 addresses each have 25 KiB
MAX_DHT_KEY = 128  # wire: bytes of a key, as other libp2p nodes have it
MAX_DHT_STREAM = 16  # messages on one stream; whoever has more opens another
MAX_DHT_AT_ONCE = 16  # streams being served
MAX_DHT_AT_ONCE_PER_PEER = 4  # of one peer: a dozen silent streams must not lock others out
MAX_DHT_QUERIES = 24  # peers asked in one lookup, whatever closer ones they claim to know
MAX_DHT_LOOKUPS = 4  # of ours at a time; more wait
MAX_DHT_RECORDS = 32_768  # of others' provider records held here, about 10 MiB
MAX_DHT_RECORDS_PER_PEER = 4096  # by one provider
MAX_DHT_PER_HOST = 4  # contacts in one bucket, or providers of one key, at one IP address
MAX_PROVIDED = 4096  # keys that this node provides
MAX_FOUND = 64  # providers that one lookup returns
DHT_BUCKET = 20  # Kademlia's k: contacts a bucket, peers and providers an answer
DHT_PARALLEL = 3  # Kademlia's alpha
DHT_STORES = 8  # peers that a record is given to: the closest
DHT_WIDTH = 12  # closest peers that a lookup asks: some may have come or gone since
DHT_RATE, DHT_BURST = 50.0, 500.0  # messages of one peer a second; beyond it points
MAX_VISITS = 24  # connections made for one question, above those we want anyway
VISIT_RATE, VISIT_BURST = 2.0, 32.0  # such dials a second: a liar has us knock at few doors

# --- seconds -----------------------------------------------------------------
PING_INTERVAL_S = 2.0
SILENCE_S = 8.0  # a peer not heard for so long is disconnected: frozen, or its link is dead
DIAL_TIMEOUT_S = 4.0
STREAM_TIMEOUT_S = 5.0  # opening a stream, protocol negotiation included
BACKOFF_FIRST_S = 0.1
BACKOFF_LOOPBACK_S = 2.0  # a peer on this machine that comes back is found within this
BACKOFF_MOST_S = 5.0
BACKOFF_HEARSAY_FIRST_S = 1.0  # for a peer that was never reached: it may not exist
BACKOFF_HEARSAY_MOST_S = 60.0
STEADY_S = 1.0  # a connection lost sooner is not redialled at once
EXCHANGE_INTERVAL_S = 5.0
FORGET_S = 600.0  # a learned peer that could not be reached for so long is forgotten
DHT_QUERY_S = 5.0  # one peer's answer
DHT_LOOKUP_S = 20.0  # a whole lookup
PROVIDE_INTERVAL_S = 3600.0  # a record is given out again
RECORD_TTL_S = 3 * 3600.0  # and forgotten when it was not
PROVIDE_PAUSE_S = 0.25  # between two records given out
PROVIDE_RETRY_S = 5.0  # when nobody was there to take one
VISIT_S = 60.0  # a connection made for a question is closed when unused for so long
JUDGE_TIMEOUT_S = 5.0  # a gossip handler that takes longer has its message dropped
SERVE_TIMEOUT_S = 30.0  # a request handler that takes longer answers with a failure
READ_TIMEOUT_S = 10.0  # a request must arrive within this
REPLY_TIMEOUT_S = 60.0  # an answer must be taken by the peer within this
BAN_S = 300.0  # a peer over the violation limit is refused for this long
CLOSE_S = 0.7  # orderly closing of all connections; then the thread is cancelled
STOP_S = 1.8  # `stop` returns within this, whatever hangs
START_S = 60.0  # importing libp2p (0.7 s when idle) and listening; more is a failure
RESTART_FIRST_S = 0.1
RESTART_MOST_S = 2.0

# --- violation points --------------------------------------------------------
VIOLATION_LIMIT = 100.0
VIOLATION_HALF_LIFE_S = 60.0
POINTS_INVALID_GOSSIP = 10.0
POINTS_GARBAGE = 50.0  # bytes that are not the protocol at all
POINTS_TOO_LARGE = 50.0
POINTS_FLOOD = 2.0
