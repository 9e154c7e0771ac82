// The browser's light client under Node.js, held to the vectors that the Python one is held to.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const TESTS = dirname(dirname(fileURLToPath(import.meta.url)));
const VECTORS = join(TESTS, "vectors");

// A browser is told that these are modules; Node.js takes it from a package.json beside them.
const copy = mkdtempSync(join(tmpdir(), "light-"));
cpSync(join(dirname(TESTS), "node", "explorer", "static"), copy, { recursive: true });
writeFileSync(join(copy, "package.json"), '{"type": "module"}');
after(() => rmSync(copy, { recursive: true }));
const load = (name) => import(pathToFileURL(join(copy, name)));

const light = await load("light.js");
const { hash } = await load("blake3.js");
const { DecodeError } = await load("codec.js");
const { sha512, verify } = await load("ed25519.js");

const read = (...path) => JSON.parse(readFileSync(join(VECTORS, ...path), "utf8"));
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const unhex = (text) => new Uint8Array(Buffer.from(text, "hex"));

function terms({ chain_id: chainId, trust_ms: trustMs, drift_ms: driftMs }) {
  return { chainId: unhex(chainId), trustMs: BigInt(trustMs), driftMs: BigInt(driftMs) };
}

const blockOf = (raw) => light.decode(light.LightBlock, unhex(raw));

function trusted(one) {
  const header = light.decode(light.Header, unhex(one.trusted));
  return light.trust(header, light.decode(light.ValidatorSet, unhex(one.validators)));
}

// --- encoding ---------------------------------------------------------------------------

for (const [file, least] of [["types", 5], ["light", 1], ["light_proofs", 2], ["tree", 2]]) {
  test(`codec: chain.${file}`, () => {
    const known = read("codec", `chain.${file}.json`).filter(({ type }) => light[type]);
    assert.ok(known.length >= least);
    for (const { type, tag, examples, base, rejects } of known) {
      assert.equal(light[type].tag, tag);
      for (const raw of examples) {
        const value = light.decode(light[type], unhex(raw));
        assert.equal(hex(light.encode(light[type], value)), raw, type);
      }
      const good = unhex(base);
      for (const [why, at, cut, put] of rejects) {
        const bad = Buffer.concat([good.subarray(0, at), unhex(put), good.subarray(at + cut)]);
        const attempt = () => light.decode(light[type], new Uint8Array(bad));
        assert.throws(attempt, DecodeError, `${type}: ${why}`);
      }
    }
  });
}

test("codec: limits of arrays and options", () => {
  const filled = (type, name, value) => light.encode(light[type], { siblings: [], other: null, [name]: value });
  const hashes = (length) => Array.from({ length }, () => new Uint8Array(32));
  light.decode(light.StateProof, filled("StateProof", "siblings", hashes(256)));
  const long = filled("StateProof", "siblings", hashes(257));
  assert.throws(() => light.decode(light.StateProof, long), DecodeError);
  const leaf = light.encode(light.StateLeaf, { path: new Uint8Array(32), value_hash: new Uint8Array(32) });
  const proof = (...options) => Uint8Array.from([0x93, 80, 0x90, 0x90 + options.length, ...options.flatMap((o) => [...o])]);
  light.decode(light.StateProof, proof(leaf));
  assert.throws(() => light.decode(light.StateProof, proof(leaf, leaf)), DecodeError);
});

// --- signatures -------------------------------------------------------------------------

test("SHA-512 is that of Node.js", () => {
  for (const length of [0, 1, 111, 112, 127, 128, 129, 300]) {
    const message = Uint8Array.from({ length }, (_, i) => (7 * i) & 255);
    assert.equal(hex(sha512(message)), createHash("sha512").update(message).digest("hex"));
  }
});

test("signatures: the examples of RFC 8032", () => {
  const examples = [
    ["d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
      "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"],
    ["3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"],
  ];
  for (const [key, message, signature] of examples) {
    assert.ok(verify(unhex(key), unhex(message), unhex(signature)));
    assert.ok(!verify(unhex(key), unhex(`${message}00`), unhex(signature)));
    assert.ok(!verify(unhex(key), unhex(message), unhex(signature).subarray(1)));
  }
});

const signatures = join(VECTORS, "signatures");
for (const file of existsSync(signatures) ? readdirSync(signatures) : []) {
  test(`signatures: ${file}`, () => {
    const cases = read("signatures", file);
    for (const one of cases.cases ?? cases) {
      const [key, message, signature] = [one.public_key, one.message, one.signature].map(unhex);
      assert.equal(verify(key, message, signature), one.valid, one.name);
    }
  });
}

// --- the light client -------------------------------------------------------------------

const steps = read("light", "steps.json");
for (const one of steps.cases) {
  test(`step: ${one.name}`, () => {
    let verdict = "ok";
    try {
      const block = blockOf(one.block);
      const found = light.checkStep(terms(steps), trusted(one), block, BigInt(one.now_ms));
      assert.equal(found.header, block.headers[0]);
    } catch (error) {
      if (!(error instanceof light.VerifyError)) throw error;
      verdict = error instanceof light.TooFar ? "too far" : "refused";
    }
    assert.equal(verdict, one.verdict);
  });
}

const walks = read("light", "walks.json");
for (const one of walks.cases) {
  test(`walk: ${one.name}`, () => {
    const walk = new light.Walk(terms(walks), trusted(one), BigInt(one.target));
    const asked = [];
    while (walk.wanted !== null) {
      const height = Number(walk.wanted);
      asked.push(height);
      walk.give(blockOf(one.blocks[height]), BigInt(one.now_ms));
      assert.ok([0, ...one.reached].includes(Number(walk.trusted.header.height)));
    }
    assert.deepEqual([asked, walk.steps], [one.asked, one.reached.length]);
    assert.equal(walk.trusted.header.height, BigInt(one.target));
  });
}

test("a walk takes only what it asked for", () => {
  const one = walks.cases.find(({ asked }) => asked.length > 1);
  const walk = new light.Walk(terms(walks), trusted(one), BigInt(one.target));
  const other = blockOf(one.blocks[one.asked[1]]);
  const nothing = { ...other, headers: [] };
  for (const block of [other, nothing]) {
    assert.throws(() => walk.give(block, BigInt(one.now_ms)), /not a header of height/);
  }
  assert.throws(() => new light.Walk(terms(walks), trusted(one), -1n), /below the trusted/);
  const set = { members: trusted(one).validators.members.slice(1) };
  assert.throws(() => light.trust(trusted(one).header, set), /not the trusted/);
});

test("an honest peer goes on where a liar was found out", () => {
  const one = walks.cases.find(({ name }) => name === "one of four leaves");
  const walk = new light.Walk(terms(walks), trusted(one), BigInt(one.target));
  const give = (raw) => walk.give(blockOf(raw), BigInt(one.now_ms));
  give(one.blocks[one.asked[0]]);
  const height = Number(walk.wanted);
  const lie = unhex(one.blocks[height]);
  lie[lie.length - 1] ^= 1; // the last member's stake
  assert.throws(() => give(hex(lie)), light.VerifyError);
  assert.equal(walk.wanted, BigInt(height));
  while (walk.wanted !== null) give(one.blocks[walk.wanted]);
  assert.equal(walk.trusted.header.height, BigInt(one.target));
});

const forks = read("light", "forks.json");
for (const one of forks.cases) {
  test(`witness: ${one.name}`, () => {
    const walked = (raw) => {
      const block = blockOf(raw);
      const walk = new light.Walk(terms(forks), trusted(one), block.headers[0].height);
      walk.give(block, BigInt(one.now_ms));
      return walk;
    };
    let [verdict, evidence] = ["same", null];
    try {
      light.compare(walked(one.first), walked(one.second));
    } catch (error) {
      if (!(error instanceof light.Attack)) throw error;
      const found = error.evidence();
      verdict = found ? "evidence" : "attack";
      evidence = found && hex(found);
    }
    assert.deepEqual([verdict, evidence], [one.verdict, one.evidence]);
  });
}

// --- what hangs on a header -----------------------------------------------------------------

test("headers lead back", () => {
  const { headers } = blockOf(steps.cases.find(({ name }) => name.includes("9 headers")).block);
  const [last, rest] = [headers.at(-1), headers.slice(0, -1)];
  light.checkAncestors(rest, last);
  for (const wrong of [rest.slice(0, -1), rest.slice().reverse(), rest.toSpliced(2, 1)]) {
    assert.throws(() => light.checkAncestors(wrong, last), /does not follow/);
  }
});

test("transactions", () => {
  for (const one of read("light", "transactions.json").cases) {
    const proof = light.decode(light.TxProof, unhex(one.proof));
    assert.equal(light.verifyTxProof(unhex(one.tx_root), proof), one.holds, one.name);
  }
});

test("state proofs", () => {
  for (const { name, root, proofs } of read("tree", "tree.json")) {
    for (const { key, value, siblings, other } of proofs) {
      const proof = {
        siblings: siblings.map(unhex),
        other: other && { path: unhex(other[0]), value_hash: unhex(other[1]) },
      };
      const holds = (v, p = proof, r = root) => light.verifyStateProof(unhex(r), unhex(key), v, p);
      const own = value === null ? null : unhex(value);
      assert.ok(holds(own), name);
      assert.ok(!holds(own === null ? unhex("00") : null), name);
      assert.ok(!holds(own, proof, "ab".repeat(32)), name);
      const longer = [...proof.siblings, new Uint8Array(32)];
      assert.ok(!holds(own, { ...proof, siblings: longer }), name);
      const itself = { path: hash("state-key", unhex(key)), value_hash: hash("state-value", unhex(value ?? "")) };
      assert.ok(!holds(null, { ...proof, other: itself }), name);
      if (siblings.length) assert.ok(!holds(own, { ...proof, siblings: proof.siblings.slice(1) }), name);
    }
  }
});
