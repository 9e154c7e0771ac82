// The light client (docs/spec/light-client.md), rule for rule as in chain/light.py: from a header
// that is trusted to any later one by certificates alone, and from a header to what hangs on it.
// Both are held to the same vectors. Pure: the caller fetches what `Walk.wanted` names.

import { hash } from "./blake3.js";
import { bytes, decode, encode, option, seq, struct, text, uint } from "./codec.js";
import { verify } from "./ed25519.js";

export const MAX_LIGHT_HEADERS = 64;
const MAX_VALIDATORS = 512, MAX_PROOF_NODES = 256, MAX_BLOCK_TXS = 4096;
const FINALIZE = 3, KINDS = [1, 2, FINALIZE], NULLIFY = 2;

const u8 = uint(8), u32 = uint(32), u64 = uint(64), hash32 = bytes(32, 32);

export const Validator = struct(
  1,
  ["account", hash32], ["consensus_key", hash32], ["vrf_key", hash32],
  ["node_id", text(128)], ["stake", u64],
);
export const ValidatorSet = struct(2, ["members", seq(Validator, MAX_VALIDATORS)]);
export const Header = struct(
  3,
  ["version", u8], ["chain_id", hash32], ["epoch", u64], ["view", u64], ["height", u64],
  ["parent", hash32], ["time_ms", u64], ["proposer", hash32], ["tx_root", hash32],
  ["state_root", hash32], ["validators_hash", hash32], ["next_validators_hash", hash32],
  ["vrf_output", bytes(0, 64)], ["vrf_proof", bytes(0, 80)], ["evidence_root", hash32],
);
export const Certificate = struct(
  5,
  ["kind", u8], ["epoch", u64], ["view", u64], ["block_hash", hash32],
  ["signers", bytes(0, MAX_VALIDATORS / 8)],
  ["signatures", seq(bytes(64, 64), MAX_VALIDATORS)],
);
export const ConflictingCertificates = struct(17, ["first", Certificate], ["second", Certificate]);
export const LightBlock = struct(
  18,
  ["headers", seq(Header, MAX_LIGHT_HEADERS)], ["finalization", Certificate],
  ["validators", ValidatorSet],
);
export const TxProof = struct(
  19,
  ["height", u64], ["index", u32], ["count", u32], ["tx", bytes(0, 260 * 1024)],
  ["siblings", seq(hash32, 12)],
);
export const StateLeaf = struct(81, ["path", hash32], ["value_hash", hash32]);
export const StateProof = struct(
  80,
  ["siblings", seq(hash32, MAX_PROOF_NODES)], ["other", option(StateLeaf)],
);
export const HeaderRange = struct(86, ["headers", seq(Header, 256)]);

// --- refusals -------------------------------------------------------------------------

// Something does not hold: whoever sent it lies, or it is too late.
export class VerifyError extends Error {}

// Too little of the trusted set's stake has signed: a header between is needed.
export class TooFar extends VerifyError {}

const need = (holds, why) => {
  if (!holds) throw new VerifyError(why);
};

// --- bytes ----------------------------------------------------------------------------

export const same = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
const ZERO = new Uint8Array(32);

function be(value) {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value));
  return out;
}

export const blockHash = (header) => hash("block", encode(Header, header));
export const setHash = (set) => hash("validators", encode(ValidatorSet, set));

// --- certificates (chain/certificates.py) ---------------------------------------------

const total = (set) => set.members.reduce((sum, member) => sum + member.stake, 0n);

// The places in the set of those who have signed.
export function signersOf({ signers }) {
  const found = [];
  signers.forEach((byte, at) => {
    for (let bit = 0; bit < 8; bit++) if ((byte >> bit) & 1) found.push(8 * at + bit);
  });
  return found;
}

export function verifyCertificate(chainId, set, certificate) {
  const { kind, epoch, view, block_hash: block, signatures } = certificate;
  need(KINDS.includes(kind), `a certificate of unknown kind ${kind}`);
  need(view >= 1n, "views start at 1");
  need((kind === NULLIFY) === same(block, ZERO), "only a nullify names the zero hash");
  const size = set.members.length;
  need(certificate.signers.length === Math.ceil(size / 8), "a bitmap of another size than the set");
  const indices = signersOf(certificate);
  need(indices.every((i) => i < size), `a signer beyond the set of ${size}`);
  need(indices.length === signatures.length, "another number of signatures than of signers");
  const weight = indices.reduce((sum, i) => sum + set.members[i].stake, 0n);
  need(3n * weight > 2n * total(set), `stake ${weight} of ${total(set)} is no quorum`);
  const digest = hash("vote", chainId, Uint8Array.of(kind), be(epoch), be(view), block);
  indices.forEach((member, i) => {
    const key = set.members[member].consensus_key;
    need(verify(key, digest, signatures[i]), `the signature of member ${member} is wrong`);
  });
}

// --- steps (chain/light.py) -------------------------------------------------------------

// A header that is believed, and the set of its epoch.
export function trust(header, validators) {
  need(same(setHash(validators), header.validators_hash), "the set is not the trusted header's");
  return { header, validators };
}

// What a light block says by itself. `terms`: {chainId, trustMs, driftMs}, the last two BigInt.
export function checkForm(terms, block) {
  const { headers, finalization, validators } = block;
  need(headers.length > 0 && headers.length <= MAX_LIGHT_HEADERS, `${headers.length} headers`);
  for (const header of headers) {
    need(
      same(header.chain_id, terms.chainId) && header.version === 1,
      `header ${header.height} is of another chain or version`,
    );
  }
  headers.slice(1).forEach((child, i) => {
    const parent = headers[i];
    need(
      same(child.parent, blockHash(parent)) && child.height === parent.height + 1n,
      `header ${child.height} does not follow the one before`,
    );
    need(
      child.time_ms > parent.time_ms && child.epoch === parent.epoch,
      `header ${child.height} is of an earlier time or another epoch`,
    );
  });
  const last = headers.at(-1);
  need(
    finalization.kind === FINALIZE && same(finalization.block_hash, blockHash(last)),
    `the certificate does not finalize header ${last.height}`,
  );
  need(finalization.epoch === last.epoch, `the certificate is of epoch ${finalization.epoch}`);
  const shown = setHash(validators);
  need(headers.every((h) => same(h.validators_hash, shown)), "another set than the headers'");
  verifyCertificate(terms.chainId, validators, finalization);
}

// Go from a trusted header to a later one. TooFar: it may hold but cannot be told from here.
export function checkStep(terms, trusted, block, nowMs) {
  checkOrder(terms, trusted, block, nowMs);
  checkForm(terms, block);
  return believe(trusted, block);
}

// Times, heights, and the set of an epoch that the trusted header names.
function checkOrder(terms, trusted, block, nowMs) {
  need(block.headers.length > 0, "a light block without headers");
  const [old, next] = [trusted.header, block.headers[0]];
  need(nowMs < old.time_ms + terms.trustMs, `header ${old.height} is older than the trust period`);
  need(
    next.height > old.height && next.time_ms > old.time_ms,
    `header ${next.height} is not after the trusted ${old.height}`,
  );
  need(next.time_ms <= nowMs + terms.driftMs, `header ${next.height} is from the future`);
  need(next.epoch >= old.epoch, `header ${next.height} is of an earlier epoch`);
  if (next.epoch > old.epoch + 1n) return;
  const named = next.epoch === old.epoch ? old.validators_hash : old.next_validators_hash;
  need(same(next.validators_hash, named), `header ${next.height} names another validator set`);
}

// The header of a block whose order and form hold.
function believe({ header: old, validators: set }, block) {
  const next = block.headers[0];
  if (next.epoch > old.epoch + 1n && 3n * common(set, block) <= total(set)) {
    throw new TooFar(`at most a third of the stake at ${old.height} has signed ${next.height}`);
  }
  return { header: next, validators: block.validators };
}

// The stake in `set` of those whose keys have signed a block.
function common(set, block) {
  const keys = signersOf(block.finalization).map((i) => block.validators.members[i].consensus_key);
  return set.members
    .filter((member) => keys.some((key) => same(key, member.consensus_key)))
    .reduce((sum, member) => sum + member.stake, 0n);
}

// The way from a trusted header to a height: straight there if it can be, else by halves.
export class Walk {
  #terms;
  #kept = []; // whose form holds, but that are too far; nearest last

  constructor(terms, trusted, target) {
    need(target >= trusted.header.height, `height ${target} is below the trusted one`);
    this.#terms = terms;
    this.trusted = trusted;
    this.wanted = target > trusted.header.height ? target : null; // to `give` next; null: done
    this.block = null; // the one of the trusted header, once it is a new one
    this.steps = 0; // headers that became trusted
  }

  // VerifyError: nothing has changed, and another peer may be asked. What was too far and turns out
  // to be wrong from nearer by is asked for again.
  give(block, nowMs) {
    const found = block.headers[0]?.height;
    need(this.wanted !== null && found === this.wanted, `not a header of height ${this.wanted}`);
    checkOrder(this.#terms, this.trusted, block, nowMs);
    checkForm(this.#terms, block);
    this.#kept.push(block);
    while (this.#kept.length) {
      const nearest = this.#kept.at(-1);
      const { height } = nearest.headers[0];
      try {
        checkOrder(this.#terms, this.trusted, nearest, nowMs);
        this.trusted = believe(this.trusted, nearest);
      } catch (error) {
        if (!(error instanceof VerifyError)) throw error;
        const isTooFar = error instanceof TooFar;
        if (!isTooFar) this.#kept.pop();
        this.wanted = isTooFar ? (this.trusted.header.height + height) / 2n : height;
        return;
      }
      this.block = this.#kept.pop();
      this.steps += 1;
    }
    this.wanted = null;
  }
}

// --- witnesses --------------------------------------------------------------------------

// Two final headers of one height: over a third of a validator set has signed two histories.
export class Attack extends VerifyError {
  constructor(first, second) {
    super(`two final blocks of height ${first.headers[0].height}. Believe neither`);
    this.blocks = [first, second];
  }

  // encode(ConflictingCertificates) that the chain slashes for; null if they convict nobody.
  evidence() {
    const [first, second] = this.blocks;
    const [a, b] = [first.finalization, second.finalization];
    const sets = [first, second].map((block) => setHash(block.validators));
    if (a.epoch !== b.epoch || a.view !== b.view || !same(...sets)) return null;
    const [low, high] = [a, b].sort((x, y) =>
      order(encode(Certificate, x), encode(Certificate, y)),
    );
    return encode(ConflictingCertificates, { first: low, second: high });
  }
}

function order(a, b) {
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return at < 0 ? a.length - b.length : a[at] - (b[at] ?? -1);
}

// Compare where two walks from one trusted header have come, the second by what a witness showed.
export function compare(own, witness) {
  need(own.wanted === null && witness.wanted === null, "both walks have to end first");
  const [first, second] = [own.block, witness.block];
  if (first === null || second === null) return;
  if (!same(blockHash(first.headers[0]), blockHash(second.headers[0]))) {
    throw new Attack(first, second);
  }
}

// --- what hangs on a header -----------------------------------------------------------------

// Whether each header is the parent of the next, and the last that of `descendant`.
export function checkAncestors(headers, descendant) {
  [...headers, descendant].slice(1).forEach((child, i) => {
    need(
      same(child.parent, blockHash(headers[i])) && child.height === headers[i].height + 1n,
      `header ${child.height} does not follow the one before`,
    );
  });
}

const bitAt = (path, level) => (path[level >> 3] >> (7 - (level & 7))) & 1;

// Whether `key` has `value` (null: is absent) under a state root (docs/spec/state-tree.md).
export function verifyStateProof(root, key, value, { siblings, other }) {
  const path = hash("state-key", key);
  const depth = siblings.length;
  if (depth > MAX_PROOF_NODES || (depth && same(siblings[depth - 1], ZERO))) return false;
  let digest = ZERO;
  if (value !== null) {
    if (other !== null) return false;
    digest = hash("state-leaf", path, hash("state-value", value));
  } else if (other !== null) {
    if (same(other.path, path)) return false;
    for (let i = 0; i < depth; i++) if (bitAt(other.path, i) !== bitAt(path, i)) return false;
    digest = hash("state-leaf", other.path, other.value_hash);
  }
  for (let level = depth - 1; level >= 0; level--) {
    const pair = [digest, siblings[level]];
    digest = hash("state-node", ...(bitAt(path, level) ? pair.reverse() : pair));
  }
  return same(digest, root);
}

// Whether the transactions under `root` are `count`, and that at `index` is the proof's.
export function verifyTxProof(root, { index, count, tx, siblings }) {
  if (index >= count || count > MAX_BLOCK_TXS) return false;
  let digest = hash("tx-root", Uint8Array.of(0), be(index), tx);
  let [at, width, taken] = [index, count, 0];
  while (width > 1) {
    if ((at ^ 1) < width) {
      if (taken === siblings.length) return false;
      const pair = [digest, siblings[taken++]];
      digest = hash("tx-root", Uint8Array.of(1), ...(at & 1 ? pair.reverse() : pair));
    }
    [at, width] = [at >> 1, (width + 1) >> 1];
  }
  const top = hash("tx-root", Uint8Array.of(2), be(count), digest);
  return taken === siblings.length && same(top, root);
}

export { decode, encode };
