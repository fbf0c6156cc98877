/**
 * Strict JSON (section 6) and canonical JSON (section 11, RFC 8785).
 *
 * `JSON.parse` is no use here: it keeps the last of two equal members, makes `2.0` the same as `2`, treats `__proto__`
 * and `"1"` as special names of members, and accepts half of a surrogate pair.
 *
 * A parsed value is `null`, a boolean, a string, a {@link JsonNumber}, an `Array`, or a `Map` from names to values.
 */

const DEEPEST = 32;
const MOST_PUNCTUATION = 2_097_152;
/** From here on, RFC 8785 writes a number with an exponent. */
const EXPONENT_FROM = 1e21;

const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
const WHITE = /[ \t\n\r]*/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const ESCAPES = new Map(
  Object.entries({ '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" }),
);

/** Text that is not strict JSON. */
export class JsonError extends Error {
  /** @param {string} message @param {number} at offset in UTF-16 units */
  constructor(message, at) {
    super(`${message} at character ${at}`);
    this.name = "JsonError";
  }
}

/** A number with what its spelling said: *integer* means without fraction and exponent, and other than `-0`. */
export class JsonNumber {
  /** @param {number} value finite @param {boolean} integer */
  constructor(value, integer) {
    this.value = value;
    this.integer = integer;
  }
}

/**
 * The value of an integer, as the format defines the word; `undefined` for everything else.
 *
 * @param {unknown} value
 * @returns {number | undefined}
 */
export function integerOf(value) {
  if (!(value instanceof JsonNumber) || !value.integer || !Number.isSafeInteger(value.value)) return undefined;
  return value.value;
}

/**
 * Strict UTF-8: nothing is replaced, and a byte order mark is a character like any other.
 *
 * @param {Uint8Array} bytes
 * @returns {string}
 * @throws {JsonError}
 */
export function decodeUtf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    if (error instanceof TypeError) throw new JsonError("text is not UTF-8", 0);
    throw error;
  }
}

/** @param {string} text @returns {boolean} whether it holds half of a surrogate pair */
export const hasLoneSurrogate = (text) => /\p{Surrogate}/u.test(text);

class Parser {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.punctuation = 0;
  }

  /** @param {string} message @returns {never} */
  fail(message) {
    throw new JsonError(message, this.at);
  }

  white() {
    WHITE.lastIndex = this.at;
    WHITE.test(this.text);
    this.at = WHITE.lastIndex;
  }

  count() {
    this.punctuation += 1;
    if (this.punctuation > MOST_PUNCTUATION) this.fail(`more than ${MOST_PUNCTUATION} commas and brackets`);
  }

  /** @param {string} character @returns {boolean} whether it was there and is now read */
  take(character) {
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  document() {
    this.white();
    const value = this.value(0);
    this.white();
    if (this.at !== this.text.length) this.fail("text after the value");
    return value;
  }

  /** @param {number} depth levels below the outermost value */
  value(depth) {
    if (depth > DEEPEST) this.fail(`nested deeper than ${DEEPEST} levels`);
    const character = this.text[this.at];
    if (character === "{") return this.object(depth);
    if (character === "[") return this.array(depth);
    if (character === '"') return this.string();
    for (const [word, value] of [["true", true], ["false", false], ["null", null]]) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    return this.number();
  }

  number() {
    NUMBER.lastIndex = this.at;
    const match = NUMBER.exec(this.text);
    if (match === null) this.fail("no value");
    const value = Number(match[0]);
    if (!Number.isFinite(value)) this.fail("a number beyond binary64");
    if (Number.isInteger(value) && !Number.isSafeInteger(value) && Math.abs(value) < EXPONENT_FROM) {
      this.fail("an integer beyond 2^53 - 1");
    }
    this.at = NUMBER.lastIndex;
    const integer = match[1] === undefined && match[2] === undefined && match[0] !== "-0";
    return new JsonNumber(value, integer);
  }

  string() {
    this.at += 1;
    let text = "";
    for (;;) {
      PLAIN.lastIndex = this.at;
      PLAIN.test(this.text);
      text += this.text.slice(this.at, PLAIN.lastIndex);
      this.at = PLAIN.lastIndex;
      if (this.take('"')) break;
      if (!this.take("\\")) this.fail("a string with a control character or without an end");
      text += this.escape();
    }
    if (hasLoneSurrogate(text)) this.fail("half of a surrogate pair");
    return text;
  }

  escape() {
    const character = this.text[this.at];
    const short = ESCAPES.get(character);
    if (short !== undefined) {
      this.at += 1;
      return short;
    }
    const digits = this.text.slice(this.at + 1, this.at + 5);
    if (character !== "u" || !/^[0-9a-fA-F]{4}$/.test(digits)) this.fail("no such escape");
    this.at += 5;
    return String.fromCharCode(Number.parseInt(digits, 16));
  }

  /** @param {number} depth */
  array(depth) {
    const items = [];
    this.count();
    this.at += 1;
    this.white();
    if (this.take("]")) return items;
    for (;;) {
      this.white();
      items.push(this.value(depth + 1));
      this.white();
      if (this.take("]")) return items;
      if (!this.take(",")) this.fail("neither a comma nor the end of a list");
      this.count();
    }
  }

  /** @param {number} depth */
  object(depth) {
    const members = new Map();
    this.count();
    this.at += 1;
    this.white();
    if (this.take("}")) return members;
    for (;;) {
      this.white();
      if (this.text[this.at] !== '"') this.fail("a member without a name");
      const name = this.string();
      if (members.has(name)) this.fail(`the member ${JSON.stringify(name)} twice`);
      this.white();
      if (!this.take(":")) this.fail("a member without a colon");
      this.white();
      members.set(name, this.value(depth + 1));
      this.white();
      if (this.take("}")) return members;
      if (!this.take(",")) this.fail("neither a comma nor the end of an object");
      this.count();
    }
  }
}

/**
 * Parses strict JSON.
 *
 * @param {string} text
 * @returns {null | boolean | string | JsonNumber | Array | Map<string, any>}
 * @throws {JsonError}
 */
export function parseJson(text) {
  return new Parser(text).document();
}

/** @param {string} a @param {string} b @returns {number} order of UTF-16 code units, as RFC 8785 has it */
export const byCodeUnits = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

/**
 * Canonical JSON of a parsed value; plain numbers are written as well.
 *
 * @param {unknown} value
 * @returns {string}
 */
export function canonicalJson(value) {
  if (value instanceof JsonNumber) return String(value.value); // Number::toString is RFC 8785's form; -0 becomes 0
  if (value instanceof Map) {
    const members = [...value].sort(([a], [b]) => byCodeUnits(a, b));
    return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonicalJson(member)}`).join(",")}}`;
  }
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  return typeof value === "number" ? String(value) : JSON.stringify(value);
}
