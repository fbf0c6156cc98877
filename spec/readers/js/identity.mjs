/** Canonical form, content digest, root digest and fingerprints (sections 9 and 11). */
import { ELEMENT_SIZES, isFloat, widen } from "./numbers.mjs";
import { KINDS, storesInFirst } from "./kinds.mjs";
import { canonicalJson, integerOf } from "./json.mjs";
import { digestOf } from "./sha256.mjs";
import { requiredFeatures } from "./rules.mjs";

const LEFT_OUT_WHEN_EMPTY = ["requires", "base", "info", "origin", "tokenizer", "training", "extensions"];
const IDENTIFYING = ["kind", "layout", "shape", "scale", "groups", "rows", "length"];

const isEmpty = (value) => value instanceof Map ? value.size === 0 : Array.isArray(value) && value.length === 0;
const without = (members, drop) => new Map([...members].filter(([name, value]) => !drop(name, value)));
const isOne = (value) => integerOf(value) === 1;

/** A copy with the values under these names changed where they are present. */
function changed(members, changes) {
  const copy = new Map(members);
  for (const [name, change] of Object.entries(changes)) if (copy.has(name)) copy.set(name, change(copy.get(name)));
  return copy;
}

const canonicalRope = (rope) =>
  without(rope, (name, value) => name === "rotary" && integerOf(value) === integerOf(rope.get("head")));

const canonicalSegments = (segments) =>
  changed(without(segments, (name, value) => name === "interleave" && isOne(value)), {
    parts: (parts) => parts.map((part) => changed(part, { rope: canonicalRope })),
  });

const canonicalTarget = (target) =>
  changed(
    without(target, (name, value) => (name === "layout" && isEmpty(value)) || (name === "groups" && isOne(value))),
    { segments: canonicalSegments },
  );

/**
 * The document as a writer writes it (P-019): what says nothing is left out, everything else is kept.
 *
 * @param {Map<string, any>} document of a sound file
 * @returns {Map<string, any>}
 */
export function canonicalDocument(document) {
  const trimmed = changed(document, {
    requires: (requires) => without(requires, (_, list) => isEmpty(list)),
    targets: (targets) => new Map([...targets].map(([name, target]) => [name, canonicalTarget(target)])),
  });
  return without(trimmed, (name, value) => LEFT_OUT_WHEN_EMPTY.includes(name) && isEmpty(value));
}

/**
 * The content digest: the identity of what an adapter does.
 *
 * @param {Map<string, any>} document of a sound file
 * @param {Map<string, import("./container.mjs").Tensor>} tensors of the file
 * @returns {string}
 */
export function contentDigest(document, tensors) {
  const targets = new Map();
  for (const [name, target] of canonicalDocument(document).get("targets")) {
    const members = new Map(IDENTIFYING.filter((field) => target.has(field)).map((field) => [field, target.get(field)]));
    const described = [...target.get("tensors")].map(([role, digest]) => {
      const { dtype, shape } = tensors.get(`${name}/${role}`);
      return [role, new Map([["dtype", dtype], ["shape", shape], ["digest", digest]])];
    });
    targets.set(name, members.set("tensors", new Map(described)));
  }
  const features = requiredFeatures(document);
  const content = new Map([
    ["targets", targets],
    ["requires", features],
    ["extensions", without(document.get("extensions") ?? new Map(), (name) => !features.includes(name))],
  ]);
  if (document.has("gate")) content.set("gate", document.get("gate").get("tokens"));
  return digestOf("loreg-content-v1\0", canonicalJson(content));
}

/**
 * The root digest of a set of base tensors (section 9.1).
 *
 * @param {Map<string, string>} fingerprints by name
 * @returns {string}
 */
export const rootDigest = (fingerprints) => digestOf("loreg-root-v1\0", canonicalJson(fingerprints));

/**
 * Exchanges the last two axes of row-major elements.
 *
 * @param {Uint8Array} bytes
 * @param {number[]} shape of at least two axes
 * @param {number} size bytes of an element
 * @returns {Uint8Array}
 */
function transposeElements(bytes, shape, size) {
  const [rows, columns] = shape.slice(-2);
  const block = rows * columns * size;
  const transposed = new Uint8Array(bytes.length);
  for (let start = 0; start < bytes.length; start += block) {
    for (let i = 0; i < rows; i += 1) {
      for (let k = 0; k < columns; k += 1) {
        const from = start + (i * columns + k) * size;
        const to = start + (k * rows + i) * size;
        for (let byte = 0; byte < size; byte += 1) transposed[to + byte] = bytes[from + byte];
      }
    }
  }
  return transposed;
}

/**
 * A tensor of the base's shape in the axis order of its fingerprint (section 9).
 *
 * @param {import("./container.mjs").Tensor} tensor as the base stores it
 * @param {string} kind
 * @param {string[]} layout
 * @returns {import("./container.mjs").Tensor}
 */
export function logicalTensor(tensor, kind, layout) {
  if (!KINDS.get(kind).logical || !storesInFirst(layout)) return tensor;
  const { dtype, shape, bytes } = tensor;
  return {
    dtype,
    shape: [...shape.slice(0, -2), shape.at(-1), shape.at(-2)],
    bytes: transposeElements(bytes, shape, ELEMENT_SIZES.get(dtype)),
  };
}

/**
 * The fingerprint of a base tensor, as a target of a kind and a layout takes it (section 9).
 *
 * @param {import("./container.mjs").Tensor} tensor as the base stores it
 * @param {string} [kind]
 * @param {string[]} [layout]
 * @returns {string}
 */
export function fingerprint(tensor, kind = "full", layout = []) {
  const { dtype, shape, bytes } = logicalTensor(tensor, kind, layout);
  const start = `loreg-base-v1\0${canonicalJson(shape)}\0`;
  if (isFloat(dtype) && dtype !== "F64") return digestOf(start, widen(dtype, bytes));
  return digestOf(start, `${dtype}\0`, bytes);
}
