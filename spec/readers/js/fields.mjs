/** Rules about the fields of the document that describe, each by itself. */
import { byCodeUnits, integerOf } from "./json.mjs";

const DIGEST = /^sha256:[0-9a-f]{64}$/;
const FEATURE_NAME = /^[a-z0-9.-]{1,100}$/;
const REVERSE_DNS = /^[a-z0-9-]+(\.[a-z0-9-]+)+$/;

/** @param {unknown} value */
export const isObject = (value) => value instanceof Map;
/** @param {unknown} value */
export const isString = (value) => typeof value === "string";
/** @param {unknown} value @returns {boolean} whether it is a digest of section 2 */
export const isDigest = (value) => isString(value) && DIGEST.test(value);
/** @param {unknown} value */
const isIndex = (value) => integerOf(value) >= 0;

/** @param {Map<string, any>} object @param {string} name @param {(value: unknown) => boolean} holds */
const optional = (object, name, holds) => !object.has(name) || holds(object.get(name));
/** @param {(item: unknown) => boolean} holds */
const listOf = (holds) => (value) => Array.isArray(value) && value.every(holds);

const isFeatureList = (value) =>
  listOf((name) => isString(name) && FEATURE_NAME.test(name))(value) &&
  value.every((name, index) => index === 0 || byCodeUnits(value[index - 1], name) < 0);

const isRequires = (value) =>
  isObject(value) &&
  [...value.keys()].every((name) => name === "read" || name === "write") &&
  optional(value, "read", isFeatureList) &&
  optional(value, "write", isFeatureList);

const isExtensions = (value) =>
  isObject(value) && [...value].every(([name, member]) => REVERSE_DNS.test(name) && isObject(member));

const isGate = (value) =>
  isObject(value) && value.size === 1 && listOf(isIndex)(value.get("tokens")) && value.get("tokens").length > 0;

const isTokenizer = (value) =>
  isObject(value) &&
  optional(value, "digest", isDigest) &&
  optional(value, "chat_template", isDigest) &&
  optional(value, "added", listOf((token) => isObject(token) && isIndex(token.get("id")) && isString(token.get("text"))));

const isLineage = (value) =>
  isObject(value) &&
  isString(value.get("operation")) &&
  optional(value, "parameters", isObject) &&
  optional(
    value,
    "parents",
    listOf((parent) => isObject(parent) && isDigest(parent.get("content")) && optional(parent, "name", isString)),
  );

const isTraining = (value) =>
  isObject(value) &&
  optional(value, "tool", isString) &&
  optional(value, "version", isString) &&
  optional(
    value,
    "datasets",
    listOf(
      (set) =>
        isObject(set) &&
        isString(set.get("name")) &&
        optional(set, "revision", isString) &&
        optional(set, "license", isString),
    ),
  );

const isView = (value) => isObject(value) && isString(value.get("scheme"));

/** An object with strings under these names, where they are present. */
const describes =
  (...names) =>
  (value) =>
    isObject(value) && names.every((name) => optional(value, name, isString));

/** Field, rule, what holds, and what to say where it does not. */
const FIELDS = [
  ["requires", "R-014", isRequires, "it is not read and write with sorted lists of distinct names"],
  ["extensions", "R-016", isExtensions, "it does not map reverse-DNS names to objects"],
  ["gate", "R-018", isGate, "it is not an object with a list of tokens and nothing else"],
  ["tokenizer", "R-019", isTokenizer, "it does not hold digests and added tokens"],
  ["base", "R-037", describes("name", "revision", "license"), "it is no object with strings"],
  ["info", "R-037", describes("title", "license"), "it is no object with strings"],
  ["origin", "R-037", isObject, "it is no object"],
  ["lineage", "R-039", isLineage, "it does not say what was done to which parents"],
  ["training", "R-040", isTraining, "it does not hold a tool, a version and data sets"],
];

/** @param {Map<string, any>} document @param {import("./errors.mjs").Report} report */
export function judgeFields(document, report) {
  for (const [field, rule, holds, message] of FIELDS) {
    if (!optional(document, field, holds)) report.add(rule, field, message);
  }
  const base = document.get("base");
  if (isObject(base) && !optional(base, "view", isView)) report.add("R-041", "base.view", "it has no scheme");
}
