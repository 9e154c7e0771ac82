// The canonical encoding (docs/spec/encoding.md): MessagePack of integers, bytes, text and arrays in
// their shortest forms, structs as arrays that begin with their tag. What would not be encoded to
// the same bytes again is refused. Integers of 64 bits are BigInt, shorter ones numbers.

export class DecodeError extends Error {}

const refuse = (text) => {
  throw new DecodeError(text);
};

// --- kinds of values ------------------------------------------------------------------

export const uint = (bits) => ({ kind: "uint", bits });
export const bytes = (least, most) => ({ kind: "bytes", least, most });
export const text = (most) => ({ kind: "text", most });
export const seq = (item, most) => ({ kind: "seq", item, most });
export const option = (item) => ({ kind: "option", item });
// `fields`: [name, kind] in order.
export const struct = (tag, ...fields) => ({ kind: "struct", tag, fields });

// --- decoding -------------------------------------------------------------------------

class Reader {
  constructor(data) {
    this.data = data;
    this.view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    this.at = 0;
  }

  take(length) {
    if (length > this.data.length - this.at) refuse("the end comes too early");
    return this.data.subarray(this.at, (this.at += length));
  }

  number(length) {
    const part = this.take(length);
    return part.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
  }

  // The length of something whose short form is `fix` (its first byte) for fewer than `room`, and
  // whose longer forms are `codes`, by one, two and four bytes (0: there is none).
  length(what, fix, room, codes) {
    const head = this.take(1)[0];
    if (room && head >= fix && head < fix + room) return head - fix;
    const form = codes.indexOf(head);
    if (head === 0 || form < 0) refuse(`${what} was expected`);
    const value = Number(this.number(1 << form));
    const shorter = codes[form - 1] ? 2 ** (8 << (form - 1)) : room;
    if (value < shorter) refuse(`the length of ${what} has a shorter form`);
    return value;
  }

  uint(bits) {
    const head = this.take(1)[0];
    let value = BigInt(head);
    if (head > 0x7f) {
      if (head < 0xcc || head > 0xcf) refuse("a number from 0 was expected");
      const form = head - 0xcc;
      value = this.number(1 << form);
      if (value < (form === 0 ? 0x80n : 1n << BigInt(8 << (form - 1)))) {
        refuse("the number has a shorter form");
      }
    }
    if (value >> BigInt(bits)) refuse(`a number of at most ${bits} bits was expected`);
    return bits === 64 ? value : Number(value);
  }

  value(type) {
    switch (type.kind) {
      case "uint":
        return this.uint(type.bits);
      case "bytes": {
        const length = this.length("bytes", 0, 0, [0xc4, 0xc5, 0xc6]);
        if (length < type.least || length > type.most) refuse(`${length} bytes`);
        return this.take(length);
      }
      case "text":
        return this.text(type.most);
      case "seq": {
        const length = this.length("an array", 0x90, 16, [0, 0xdc, 0xdd]);
        if (length > type.most) refuse(`an array of ${length}`);
        return Array.from({ length }, () => this.value(type.item));
      }
      case "option": {
        const length = this.length("an option", 0x90, 16, [0, 0xdc, 0xdd]);
        if (length > 1) refuse("an option has at most one element");
        return length ? this.value(type.item) : null;
      }
      default:
        return this.struct(type);
    }
  }

  struct({ tag, fields }) {
    const length = this.length("a struct", 0x90, 16, [0, 0xdc, 0xdd]);
    if (length !== fields.length + 1) refuse(`${length - 1} fields instead of ${fields.length}`);
    if (this.uint(8) !== tag) refuse(`another struct than the one with tag ${tag}`);
    return Object.fromEntries(fields.map(([name, kind]) => [name, this.value(kind)]));
  }

  text(most) {
    const length = this.length("text", 0xa0, 32, [0xd9, 0xda, 0xdb]);
    if (length > most) refuse(`text of ${length} bytes`);
    let found;
    try {
      found = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.take(length));
    } catch (error) {
      if (error instanceof DecodeError) throw error;
      refuse("text that is not UTF-8");
    }
    if (/[\u0000-\u001f\u007f]/.test(found)) refuse("text with control characters");
    return found;
  }
}

// The value of a kind that is encoded by exactly these bytes. DecodeError if there is none.
export function decode(type, data) {
  const reader = new Reader(data);
  const value = reader.value(type);
  if (reader.at !== data.length) refuse("bytes after the end");
  return value;
}

// --- encoding -------------------------------------------------------------------------

const fixed = (value, length) =>
  Array.from({ length }, (_, i) => Number((BigInt(value) >> BigInt(8 * (length - 1 - i))) & 0xffn));

function head(length, fix, room, codes) {
  if (length < room) return [fix + length];
  const form = codes.findIndex((code, i) => code && length < 2 ** (8 << i));
  return [codes[form], ...fixed(length, 1 << form)];
}

function write(type, value, out) {
  switch (type.kind) {
    case "uint": {
      const number = BigInt(value);
      const form = [0, 1, 2, 3].find((i) => number >> BigInt(8 << i) === 0n);
      out.push(...(number < 0x80n ? [Number(number)] : [0xcc + form, ...fixed(number, 1 << form)]));
      break;
    }
    case "bytes":
      out.push(...head(value.length, 0, 0, [0xc4, 0xc5, 0xc6]));
      for (const byte of value) out.push(byte);
      break;
    case "text": {
      const coded = new TextEncoder().encode(value);
      out.push(...head(coded.length, 0xa0, 32, [0xd9, 0xda, 0xdb]), ...coded);
      break;
    }
    case "seq":
      out.push(...head(value.length, 0x90, 16, [0, 0xdc, 0xdd]));
      for (const item of value) write(type.item, item, out);
      break;
    case "option":
      out.push(value === null ? 0x90 : 0x91);
      if (value !== null) write(type.item, value, out);
      break;
    default:
      out.push(...head(type.fields.length + 1, 0x90, 16, [0, 0xdc, 0xdd]));
      write(uint(8), type.tag, out);
      for (const [name, kind] of type.fields) write(kind, value[name], out);
  }
}

// The one encoding of a value of this kind, which is not checked.
export function encode(type, value) {
  const out = [];
  write(type, value, out);
  return Uint8Array.from(out);
}
