// From the bytes of a tile to the header of a block, with nothing taken on trust but the header:
// the formats are those of docs/spec/tiles.md, state-tree.md and blocks.md.

import { hash } from "./blake3.js";

const ARITY = 8, SUBTILE = 256 * 1024, ROOT_LEVEL = 0xff;

export const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
export const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (b) => parseInt(b, 16));

function u64(value) {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value));
  return out;
}

export function subtileHash(index, bytes) {
  return hash("subtile", u64(index), u64(bytes.length), bytes);
}

// Subtile hashes of a tile's bytes; `told(index)` after each.
export function subtileHashes(bytes, told = () => {}) {
  const found = [];
  for (let at = 0; at < bytes.length; at += SUBTILE) {
    found.push(subtileHash(found.length, bytes.subarray(at, at + SUBTILE)));
    told(found.length - 1);
  }
  return found;
}

const node = (name, level, position, children) =>
  hash(name, Uint8Array.of(level), u64(position), ...children);

const rootOf = (name, count, size, top) =>
  hash(name, Uint8Array.of(ROOT_LEVEL), u64(count), u64(size), top);

export function tileRoot(hashes, size) {
  let nodes = hashes;
  for (let level = 1; nodes.length > 1; level++) {
    const above = [];
    for (let i = 0; i < nodes.length; i += ARITY) {
      above.push(node("tile-node", level, i / ARITY, nodes.slice(i, i + ARITY)));
    }
    nodes = above;
  }
  return rootOf("tile-node", hashes.length, size, nodes[0]);
}

// The root that a leaf and its siblings lead to. `name`: the kind of tree, "shard" or "model".
export function climb(name, leaf, index, leaves, size, siblings) {
  let [at, count, level, taken] = [leaf, leaves, 0, 0];
  while (count > 1) {
    const slot = index % ARITY;
    const width = Math.min(ARITY, count - (index - slot)) - 1;
    const group = siblings.slice(taken, taken + width);
    if (group.length !== width) throw new Error("the path is too short");
    taken += width;
    level += 1;
    index = Math.floor(index / ARITY);
    count = Math.ceil(count / ARITY);
    at = node(name, level, index, [...group.slice(0, slot), at, ...group.slice(slot)]);
  }
  if (taken !== siblings.length) throw new Error("the path is too long");
  return rootOf(name, leaves, size, at);
}

// The state root under which `key` has `value`.
export function stateRoot(key, value, siblings) {
  const path = hash("state-key", key);
  let digest = hash("state-leaf", path, hash("state-value", value));
  for (let level = siblings.length - 1; level >= 0; level--) {
    const one = (path[level >> 3] >> (7 - (level & 7))) & 1;
    digest = hash("state-node", ...(one ? [siblings[level], digest] : [digest, siblings[level]]));
  }
  return digest;
}

export const blockHash = (header) => hash("block", header);

// A struct of the protocol (MessagePack array: tag, fields) as an array. No floats, no maps.
export function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const take = (length) => bytes.subarray(at, (at += length));
  const uint = (length) => take(length).reduce((sum, byte) => sum * 256 + byte, 0);
  function item() {
    const head = view.getUint8(at++);
    if (head <= 0x7f) return head;
    if (head >> 4 === 0x9) return Array.from({ length: head & 15 }, item);
    if (head >> 5 === 0x5) return new TextDecoder().decode(take(head & 31));
    if (head >= 0xcc && head <= 0xcf) return uint(1 << (head - 0xcc));
    if (head === 0xc4) return take(uint(1));
    if (head === 0xdc) return Array.from({ length: uint(2) }, item);
    throw new Error(`unexpected byte ${head.toString(16)} in a header`);
  }
  return item();
}

const STATE_ROOT_FIELD = 10; // of a header, the tag counted; docs/spec/blocks.md
const MODEL_ROOT_FIELD = 1; // of a model record
const HEIGHT_FIELD = 5;

// Every step from bytes to header. `told(text, ok)` after each; true if all hold.
export function verifyTile(tile, bytes, told, drawn = () => {}) {
  const same = (a, b) => hex(a) === (typeof b === "string" ? b : hex(b));
  const siblings = (path) => path.siblings.map(unhex);
  let good = true;
  const check = (text, ok) => {
    good &&= ok;
    told(text, ok);
  };
  const root = tileRoot(subtileHashes(bytes, drawn), bytes.length);
  check(`${bytes.length.toLocaleString("en")} bytes hash to the tile root ${hex(root)}`, same(root, tile.root));
  const { tile: below, shard: above } = tile.path;
  const shard = climb("shard", root, below.index, below.count, tile.shard_bytes, siblings(below));
  check(`with ${below.siblings.length} siblings, to the shard root ${hex(shard)}`, same(shard, tile.shard_root));
  const model = climb("model", shard, above.index, above.count, 0, siblings(above));
  check(`with ${above.siblings.length} siblings, to the model root ${hex(model)}`, same(model, tile.model_root));
  const { key, value, header: head, block_hash: name } = tile.state;
  const record = unpack(unhex(value));
  check("the state's model record holds that root", key === hex(new TextEncoder().encode("model")) && same(record[MODEL_ROOT_FIELD], model));
  const state = stateRoot(unhex(key), unhex(value), tile.state.siblings.map(unhex));
  const header = unhex(head);
  const fields = unpack(header);
  check(`the record leads to the state root ${hex(state)}`, same(state, fields[STATE_ROOT_FIELD]));
  const block = blockHash(header);
  check(`which stands in the header of block ${fields[HEIGHT_FIELD]}, ${hex(block)}`, same(block, name));
  return good;
}
