// Ed25519 as the chain has it (docs/spec/wallet.md): valid if and only if libsodium says so. S is
// below the group's order, key and R are canonical and not of small order, and R = S·B - h·A to the
// bit. WebCrypto is not asked: browsers differ in what they let pass, have it on secure pages only,
// and one verdict must hold everywhere. A signature takes some milliseconds.

const P = 2n ** 255n - 19n;
const L = 2n ** 252n + 27742317777372353535851937790883648493n;
const mod = (a, m = P) => ((a % m) + m) % m;

function power(base, exponent) {
  let [result, square] = [1n, base];
  for (let e = exponent; e > 0n; e >>= 1n) {
    if (e & 1n) result = (result * square) % P;
    square = (square * square) % P;
  }
  return result;
}

const invert = (a) => power(mod(a), P - 2n);
const D = mod(-121665n * invert(121666n));
const D2 = (2n * D) % P;
const ROOT_OF_MINUS_ONE = power(2n, (P - 1n) / 4n);

// --- points: extended coordinates (X, Y, Z, T), x = X/Z, y = Y/Z, T = XY/Z -----------------

const ZERO = [0n, 1n, 1n, 0n];

function add([x1, y1, z1, t1], [x2, y2, z2, t2]) {
  const a = ((y1 - x1 + P) * (y2 - x2 + P)) % P;
  const b = ((y1 + x1) * (y2 + x2)) % P;
  const c = (((t1 * D2) % P) * t2) % P;
  const d = (2n * z1 * z2) % P;
  const [e, f, g, h] = [b - a + P, d - c + P, d + c, b + a];
  return [(e * f) % P, (g * h) % P, (f * g) % P, (e * h) % P];
}

function double([x, y, z]) {
  const a = (x * x) % P;
  const b = (y * y) % P;
  const c = (2n * z * z) % P;
  const h = a + b;
  const e = mod(h - (x + y) * (x + y));
  const g = a - b + P;
  const f = (c + g) % P;
  return [(e * f) % P, (g * h) % P, (f * g) % P, (e * h) % P];
}

const negate = ([x, y, z, t]) => [mod(-x), y, z, mod(-t)];

function multiples(point) {
  const found = [ZERO];
  while (found.length < 16) found.push(add(found.at(-1), point));
  return found;
}

// The point of an encoding whose y is below P; null if there is none.
function decompress(y, sign) {
  const y2 = (y * y) % P;
  const [u, v] = [mod(y2 - 1n), (D * y2 + 1n) % P];
  let x = (((u * power(v, 3n)) % P) * power((u * power(v, 7n)) % P, (P - 5n) / 8n)) % P;
  const vx2 = (((v * x) % P) * x) % P;
  if (vx2 === mod(-u)) x = (x * ROOT_OF_MINUS_ONE) % P;
  else if (vx2 !== u) return null;
  if ((x & 1n) !== sign) x = mod(-x);
  return [x, y, 1n, (x * y) % P];
}

const BASE = multiples(decompress(mod(4n * invert(5n)), 0n));

const little = (bytes) => bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);

// y and the sign of x of an encoded point.
function coordinates(bytes) {
  const number = little(bytes);
  return [number & ((1n << 255n) - 1n), number >> 255n];
}

// Whether eight times the point is nothing: one of the eight points that sign for anybody.
function isOfSmallOrder(point) {
  const [x, y, z] = double(double(double(point)));
  return x === 0n && y === z;
}

function encodePoint([x, y, z]) {
  const inverse = invert(z);
  let number = ((y * inverse) % P) | ((((x * inverse) % P) & 1n) << 255n);
  return Uint8Array.from({ length: 32 }, () => {
    const byte = Number(number & 0xffn);
    number >>= 8n;
    return byte;
  });
}

// --- SHA-512 --------------------------------------------------------------------------------

const WORD = (1n << 64n) - 1n;
const PRIMES = (() => {
  const found = [];
  for (let n = 2; found.length < 80; n++) if (found.every((p) => n % p)) found.push(n);
  return found;
})();

// The first 64 bits of the fraction of a prime's root, in integers.
function fraction(prime, degree) {
  const scaled = BigInt(prime) << BigInt(64 * degree);
  let [low, high] = [0n, 1n << 80n];
  while (high - low > 1n) {
    const middle = (low + high) >> 1n;
    if (middle ** BigInt(degree) <= scaled) low = middle;
    else high = middle;
  }
  return low & WORD;
}

const START = PRIMES.slice(0, 8).map((p) => fraction(p, 2));
const ROUNDS = PRIMES.map((p) => fraction(p, 3));
const rotate = (x, n) => ((x >> n) | (x << (64n - n))) & WORD;

export function sha512(message) {
  const length = Math.ceil((message.length + 17) / 128) * 128;
  const padded = new Uint8Array(length);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setBigUint64(length - 8, BigInt(message.length) * 8n);
  const state = [...START];
  for (let at = 0; at < length; at += 128) {
    const w = Array.from({ length: 16 }, (_, i) => view.getBigUint64(at + 8 * i));
    for (let i = 16; i < 80; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const s0 = rotate(x, 1n) ^ rotate(x, 8n) ^ (x >> 7n);
      const s1 = rotate(y, 19n) ^ rotate(y, 61n) ^ (y >> 6n);
      w.push((w[i - 16] + s0 + w[i - 7] + s1) & WORD);
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 80; i++) {
      const s1 = rotate(e, 14n) ^ rotate(e, 18n) ^ rotate(e, 41n);
      const t1 = h + s1 + ((e & f) ^ (~e & WORD & g)) + ROUNDS[i] + w[i];
      const s0 = rotate(a, 28n) ^ rotate(a, 34n) ^ rotate(a, 39n);
      const t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) & WORD, c, b, a, (t1 + t2) & WORD];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i] = (state[i] + word) & WORD));
  }
  const out = new Uint8Array(64);
  state.forEach((word, i) => new DataView(out.buffer).setBigUint64(8 * i, word));
  return out;
}

// --- verifying ------------------------------------------------------------------------------

// Whether `signature` is by `key` over `message`, all bytes.
export function verify(key, message, signature) {
  if (key.length !== 32 || signature.length !== 64) return false;
  const r = signature.subarray(0, 32);
  const s = little(signature.subarray(32));
  const [y, sign] = coordinates(key);
  if (s >= L || y >= P) return false;
  const point = decompress(y, sign);
  if (point === null || isOfSmallOrder(point)) return false;
  const hashed = new Uint8Array(64 + message.length);
  hashed.set(r);
  hashed.set(key, 32);
  hashed.set(message, 64);
  const h = little(sha512(hashed)) % L;
  const minus = multiples(negate(point));
  let sum = ZERO;
  for (let shift = 252n; shift >= 0n; shift -= 4n) {
    for (let i = 0; i < 4; i++) sum = double(sum);
    sum = add(sum, BASE[Number((s >> shift) & 15n)]);
    sum = add(sum, minus[Number((h >> shift) & 15n)]);
  }
  return encodePoint(sum).every((byte, i) => byte === r[i]) && !isOfSmallOrder(sum);
}
