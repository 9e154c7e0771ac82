"""Every limit of the links: its value, its unit and its reason (docs/spec/links.md).

They are this node's own, except where the comment says `wire`: those both ends must share.
"""

from __future__ import annotations

from node.net import limits

# --- bytes -------------------------------------------------------------------
FRAME_BYTES = 64 * 1024  # wire: one frame, header included
HEADER_BYTES = 8  # wire
BODY_BYTES = FRAME_BYTES - HEADER_BYTES  # wire: content of one DATA frame
PROTOCOL_BYTES = 128  # wire: a protocol's name
REQUEST_CREDIT_BYTES = 64 * 1024  # wire: of a request's content, sent before it is granted
WINDOW_BYTES = 1024 * 1024  # of an answer, granted ahead of what has arrived, at least
MAX_WINDOW_BYTES = 8 * 1024 * 1024  # the same at most, for a peer that is far away
LINE_BYTES_PER_MS = 125_000  # the window keeps such a line full: a gigabit a second
RECORD_BYTES = 16 * 1024  # what TLS encrypts at once; a frame fills whole records
SOCKET_UNSENT_BYTES = 64 * 1024  # TCP_NOTSENT_LOWAT: what the kernel takes beyond its window
MESSAGES_BYTES = 8 * 1024 * 1024  # of messages waiting for one peer; three full proposals fit
ANSWERS_BYTES = 2 * limits.MAX_RESPONSE_BYTES  # of answers waiting for one peer; then: busy
REQUESTS_BYTES = 16 * 1024 * 1024  # of unfinished requests of one peer; then: busy

# --- counts ------------------------------------------------------------------
STREAMS = 64  # opened by one side of a link and not yet over; honest ones hold a few
MESSAGES = 1024  # waiting for one peer; the oldest is dropped, consensus says it again
CONTROL_FRAMES = 1024  # waiting to be sent; beyond it we stop reading until they are taken
TURN_FRAMES = 4  # sent in one turn of the event loop, in one write: encrypting takes 0.1 ms
TURN_READ_FRAMES = 256  # taken in one turn: a millisecond, whoever floods us with small ones
HALF_OPEN = 64  # inbound connections that have not yet shown who they are
HALF_OPEN_UNKNOWN = 32  # of them for hosts at which libp2p sees no peer of ours
HALF_OPEN_PER_HOST = 16  # the same of one IPv4 address or IPv6 /64
LINKS_PER_PEER = 2  # two for a moment, when both sides dial at once
ADDRESSES = 4  # of one peer that are dialled

# --- rates (a second) -----------------------------------------------------------
FRAMES_PER_S = 8000  # small ones of one peer; beyond it we read more slowly
HANDSHAKES_PER_S, HANDSHAKE_BURST = 10.0, 128.0  # begun by one host; each costs us 1 ms
MIN_RATE_BYTES = 16 * 1024  # of an answer under way; a slower peer is cut off

# --- seconds -----------------------------------------------------------------
HANDSHAKE_S = 5.0  # TLS, until both sides have shown who they are
ADMIT_S = 5.0  # for libp2p to know a peer whose link was quicker
CONNECT_S = 4.0  # TCP
ACCEPT_AGAIN_S = 0.1  # after a connection that could not be accepted: too many files are open
PING_S = 5.0
SILENCE_S = 15.0  # a link on which nothing arrives for so long is closed
RATE_WINDOW_S = 5.0  # over which the rate of an answer is taken
STALL_S = 10.0  # an answer that its asker does not take, not one byte, is given up
DRAIN_S = 10.0  # a link that is no longer wanted may finish what it has under way
CLOSE_S = 1.0  # for TLS's own goodbye
YIELD_S = 1.0  # the side with the larger peer id lets the other dial first
BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 60.0
CERTIFICATE_S = 24 * 3600.0  # validity; renewed after half of it
SKEW_S = 3600.0  # by which another node's clock may be wrong

# --- violation points --------------------------------------------------------
POINTS_FRAME = 50.0  # a frame that no honest node sends
POINTS_FLOOD = 2.0
POINTS_SLOW = 10.0
