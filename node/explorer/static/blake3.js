// BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), derive-key mode, 32-byte output: what
// every hash of the chain is (docs/spec/encoding.md). Checked against the node's in the tests.

const IV = new Uint32Array([
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
]);
const CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, CONTEXT = 32, MATERIAL = 64;
const CHUNK = 1024, BLOCK = 64;
const ORDER = (() => {
  const step = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
  const rounds = [[...Array(16).keys()]];
  while (rounds.length < 7) rounds.push(step.map((i) => rounds.at(-1)[i]));
  return rounds.map((r) => Uint8Array.from(r));
})();
const v = new Uint32Array(16);

function mix(a, b, c, d, x, y) {
  let p = v[a], q = v[b], r = v[c], s = v[d];
  p = (p + q + x) | 0; s ^= p; s = (s >>> 16) | (s << 16);
  r = (r + s) | 0; q ^= r; q = (q >>> 12) | (q << 20);
  p = (p + q + y) | 0; s ^= p; s = (s >>> 8) | (s << 24);
  r = (r + s) | 0; q ^= r; q = (q >>> 7) | (q << 25);
  v[a] = p; v[b] = q; v[c] = r; v[d] = s;
}

// The chaining value (8 words) of one block. `counter` stays below 2^32: inputs of 4 TiB.
function compress(cv, words, counter, length, flags) {
  v.set(cv);
  v.set(IV.subarray(0, 4), 8);
  v[12] = counter; v[13] = 0; v[14] = length; v[15] = flags;
  for (const o of ORDER) {
    mix(0, 4, 8, 12, words[o[0]], words[o[1]]);
    mix(1, 5, 9, 13, words[o[2]], words[o[3]]);
    mix(2, 6, 10, 14, words[o[4]], words[o[5]]);
    mix(3, 7, 11, 15, words[o[6]], words[o[7]]);
    mix(0, 5, 10, 15, words[o[8]], words[o[9]]);
    mix(1, 6, 11, 12, words[o[10]], words[o[11]]);
    mix(2, 7, 8, 13, words[o[12]], words[o[13]]);
    mix(3, 4, 9, 14, words[o[14]], words[o[15]]);
  }
  const out = new Uint32Array(8);
  for (let i = 0; i < 8; i++) out[i] = v[i] ^ v[i + 8];
  return out;
}

function wordsOf(bytes, start, length) {
  const block = new Uint8Array(BLOCK);
  block.set(bytes.subarray(start, start + length));
  const view = new DataView(block.buffer);
  return Uint32Array.from({ length: 16 }, (_, i) => view.getUint32(4 * i, true));
}

function chunk(bytes, start, end, counter, key, flags, root) {
  let cv = key;
  let at = start;
  do {
    const length = Math.min(BLOCK, end - at);
    const last = at + length >= end;
    const marks =
      flags | (at === start ? CHUNK_START : 0) | (last ? CHUNK_END : 0) | (last && root ? ROOT : 0);
    cv = compress(cv, wordsOf(bytes, at, length), counter, length, marks);
    at += BLOCK;
  } while (at < end);
  return cv;
}

function parent(left, right, key, flags) {
  const words = new Uint32Array(16);
  words.set(left);
  words.set(right, 8);
  return compress(key, words, 0, BLOCK, flags | PARENT);
}

// The tree over bytes [start, end): the left side is the largest power of two of whole chunks.
function tree(bytes, start, end, counter, key, flags, root) {
  if (end - start <= CHUNK) return chunk(bytes, start, end, counter, key, flags, root);
  const chunks = Math.ceil((end - start) / CHUNK);
  const left = 2 ** Math.ceil(Math.log2(chunks) - 1);
  const middle = start + left * CHUNK;
  return parent(
    tree(bytes, start, middle, counter, key, flags, false),
    tree(bytes, middle, end, counter + left, key, flags, false),
    key,
    flags | (root ? ROOT : 0),
  );
}

function bytesOf(words) {
  const out = new Uint8Array(32);
  const view = new DataView(out.buffer);
  words.forEach((word, i) => view.setUint32(4 * i, word, true));
  return out;
}

const keys = new Map();

// BLAKE3 of the concatenated parts under the context `blyan/1/<name>`, as 32 bytes.
export function hash(name, ...parts) {
  if (!keys.has(name)) {
    const context = new TextEncoder().encode(`blyan/1/${name}`);
    keys.set(name, tree(context, 0, context.length, 0, IV, CONTEXT, true));
  }
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return bytesOf(tree(whole, 0, whole.length, 0, keys.get(name), MATERIAL, true));
}
