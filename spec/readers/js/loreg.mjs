/**
 * A reader, validator, writer, editor, merger and prover of loreg adapters (adapter format 1.0) without dependencies,
 * for Node and browsers. Everything is a function of bytes; nothing here reads files or the network.
 */
import { AdapterError, refuse } from "./errors.mjs";
import { FEATURES } from "./kinds.mjs";
import { canonicalDocument, contentDigest as contentOf, rootDigest as rootOf } from "./identity.mjs";
import { canonicalJson, hasLoneSurrogate } from "./json.mjs";
import { examine } from "./rules.mjs";
import { mergeTensors, refuseUnmergeable } from "./merge.mjs";
import { parseContainer, writeContainer } from "./container.mjs";
import { probeTargets } from "./probe.mjs";

export { AdapterError } from "./errors.mjs";
export { FEATURES } from "./kinds.mjs";
export { canonicalJson, integerOf, parseJson } from "./json.mjs";
export { fingerprint, rootDigest } from "./identity.mjs";

export const NAME = "loreg-js";
export const VERSION = "1.0.0";
/** The version of the format's text that this implements. */
export const FORMAT = "1.0";
export const CLASSES = ["reader", "validator", "writer", "editor", "merger", "prover"];

/**
 * A sound adapter, which is not changed after it is read.
 *
 * @typedef {object} Adapter
 * @property {Map<string, any>} document  the JSON of the document: `Map`, `Array`, `JsonNumber`, strings and booleans
 * @property {Map<string, import("./container.mjs").Tensor>} tensors by key
 * @property {import("./targets.mjs").Target[]} targets
 */

/** @param {Uint8Array | ArrayBuffer} bytes @returns {Uint8Array} */
const asBytes = (bytes) => (bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : bytes);

/**
 * The rules that a file breaks, data included; none for a sound file.
 *
 * @param {Uint8Array | ArrayBuffer} bytes
 * @returns {import("./errors.mjs").Finding[]}
 */
export const validate = (bytes) => examine(asBytes(bytes)).findings;

/**
 * Reads an adapter and checks all of it.
 *
 * @param {Uint8Array | ArrayBuffer} bytes
 * @returns {Adapter}
 * @throws {AdapterError} for a file that breaks a rule
 */
export function read(bytes) {
  const { findings, document, container, targets } = examine(asBytes(bytes));
  refuse(findings);
  return { document, tensors: container.tensors, targets };
}

/** @param {Adapter} adapter @returns {string} the identity of what it does (section 11) */
export const contentDigest = ({ document, tensors }) => contentOf(document, tensors);

/** @param {Adapter} adapter @returns {string | undefined} the identity of what it was made for, where it says so */
export function adapterRoot({ targets }) {
  const stated = targets.filter((target) => target.fingerprint !== undefined);
  return stated.length === 0 ? undefined : rootOf(new Map(stated.map(({ name, fingerprint }) => [name, fingerprint])));
}

/**
 * The canonical file of an adapter (P-019 to P-021).
 *
 * @param {Adapter} adapter
 * @returns {Uint8Array}
 * @throws {AdapterError} where the canonical file is none, for example because its header is too long (P-005)
 */
export function write({ document, tensors }) {
  const bytes = writeContainer(new Map([["loreg", canonicalJson(canonicalDocument(document))]]), tensors);
  refuse(examine(bytes, { data: false }).findings);
  return bytes;
}

/**
 * The same adapter with another title.
 *
 * @param {Adapter} adapter
 * @param {string} title
 * @returns {Adapter}
 * @throws {AdapterError} `unsupported` where an editor needs a feature that this is not (P-025); `invalid-input` for a
 *   title that is no Unicode text
 */
export function withTitle(adapter, title) {
  for (const feature of adapter.document.get("requires")?.get("write") ?? []) {
    if (!FEATURES.includes(feature)) throw new AdapterError("unsupported", `P-025: editors need the feature ${feature}`);
  }
  if (hasLoneSurrogate(title)) {
    throw new AdapterError("invalid-input", "R-012 info.title: it holds half of a surrogate pair");
  }
  const info = new Map(adapter.document.get("info") ?? []).set("title", title);
  return { ...adapter, document: new Map(adapter.document).set("info", info) };
}

/**
 * Merges an adapter into the bytes of a base checkpoint.
 *
 * @param {Adapter} adapter
 * @param {Uint8Array | ArrayBuffer} base a safetensors file whose tensors have the names of the targets
 * @returns {{tensors: Map<string, import("./container.mjs").Tensor>,
 *   fingerprints: Map<string, "same" | "other" | "none">}} the changed tensors, and whether the base is the one meant
 * @throws {AdapterError}
 */
export function merge(adapter, base) {
  refuseUnmergeable(adapter); // the adapter is judged before the base (section 15)
  const { container, findings } = parseContainer(asBytes(base));
  refuse(findings);
  return mergeTensors(adapter, container.tensors);
}

/** @param {Adapter} adapter @returns {Map<string, Map<string, number[]>>} target to component to eight numbers */
export const probe = (adapter) => probeTargets(adapter);
