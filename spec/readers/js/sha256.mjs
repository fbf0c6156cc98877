/**
 * SHA-256 (FIPS 180-4) in plain JavaScript: `crypto.subtle` is asynchronous, and absent from pages opened as a file.
 */

/** The first 32 bits of the fractional part of a root of each of the first primes, in exact integer arithmetic. */
function constants(count, root) {
  const words = [];
  for (let candidate = 2n; words.length < count; candidate += 1n) {
    let prime = true;
    for (let divisor = 2n; divisor * divisor <= candidate && prime; divisor += 1n) prime = candidate % divisor !== 0n;
    if (!prime) continue;
    const scaled = candidate << (32n * root); // the root of this is the root of the prime, times 2^32
    let low = 0n;
    let high = 1n << 40n;
    while (high - low > 1n) {
      const middle = (low + high) >> 1n;
      if (middle ** root <= scaled) low = middle;
      else high = middle;
    }
    words.push(Number(low & 0xffffffffn));
  }
  return Int32Array.from(words, (word) => word | 0);
}

const INITIAL = constants(8, 2n);
const ROUND = constants(64, 3n);

/** A hash that takes its input in pieces. */
export class Sha256 {
  constructor() {
    this.state = Int32Array.from(INITIAL);
    this.block = new Uint8Array(64);
    this.filled = 0;
    this.length = 0;
    this.schedule = new Int32Array(64);
  }

  /** @param {Uint8Array} bytes @returns {this} */
  update(bytes) {
    this.length += bytes.length;
    let at = 0;
    if (this.filled > 0) {
      at = Math.min(64 - this.filled, bytes.length);
      this.block.set(bytes.subarray(0, at), this.filled);
      this.filled += at;
      if (this.filled < 64) return this;
      this.compress(this.block, 0);
      this.filled = 0;
    }
    for (; at + 64 <= bytes.length; at += 64) this.compress(bytes, at);
    this.block.set(bytes.subarray(at));
    this.filled = bytes.length - at;
    return this;
  }

  /** @returns {Uint8Array} the 32 bytes of the digest; the hash is used up */
  digest() {
    const bits = BigInt(this.length) * 8n;
    const padding = new Uint8Array((this.filled < 56 ? 64 : 128) - this.filled);
    padding[0] = 0x80;
    new DataView(padding.buffer).setBigUint64(padding.length - 8, bits);
    this.update(padding);
    const digest = new Uint8Array(32);
    const view = new DataView(digest.buffer);
    this.state.forEach((word, index) => view.setInt32(4 * index, word));
    return digest;
  }

  /** @param {Uint8Array} bytes @param {number} at */
  compress(bytes, at) {
    const w = this.schedule;
    for (let i = 0; i < 16; i += 1) {
      const k = at + 4 * i;
      w[i] = (bytes[k] << 24) | (bytes[k + 1] << 16) | (bytes[k + 2] << 8) | bytes[k + 3];
    }
    for (let i = 16; i < 64; i += 1) {
      const x = w[i - 15];
      const y = w[i - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
    }
    let [a, b, c, d, e, f, g, h] = this.state;
    for (let i = 0; i < 64; i += 1) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (h + s1 + ((e & f) ^ (~e & g)) + ROUND[i] + w[i]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + t1) | 0;
      d = c;
      c = b;
      b = a;
      a = (t1 + t2) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((word, index) => {
      this.state[index] += word;
    });
  }
}

/** @param {Uint8Array} bytes @returns {string} lower-case hexadecimal */
export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * A *digest* of section 2: `sha256:` and 64 hexadecimal digits.
 *
 * @param {...(Uint8Array | string)} pieces whose concatenation is hashed; strings as UTF-8
 * @returns {string}
 */
export function digestOf(...pieces) {
  const hash = new Sha256();
  for (const piece of pieces) hash.update(typeof piece === "string" ? new TextEncoder().encode(piece) : piece);
  return `sha256:${hex(hash.digest())}`;
}
