/** The rules of a native file, step by step as conformance.md orders them. */
import { FEATURES } from "./kinds.mjs";
import { JsonError, integerOf, parseJson } from "./json.mjs";
import { Report } from "./errors.mjs";
import { digestOf } from "./sha256.mjs";
import { elementCount, parseContainer } from "./container.mjs";
import { isName, judgeFieldsOfTarget, judgeTargetAsAWhole, targetOf } from "./targets.mjs";
import { isObject, isString, judgeFields } from "./fields.mjs";

/**
 * Everything that is found in a file.
 *
 * @typedef {object} Examination
 * @property {import("./errors.mjs").Finding[]} findings  none for a sound file
 * @property {Map<string, any> | undefined} document      where the file has got as far as R-012
 * @property {import("./container.mjs").Container | undefined} container
 * @property {import("./targets.mjs").Target[]} targets   sound by themselves; all of them where nothing is found
 */

/**
 * Judges all R rules of a file.
 *
 * @param {Uint8Array} bytes of the whole file
 * @param {{data?: boolean}} [options] `data: false` leaves out, which look at every element
 * @returns {Examination}
 */
export function examine(bytes, { data = true } = {}) {
  const { container, findings } = parseContainer(bytes);
  const examination = { findings, document: undefined, container, targets: [] };
  if (container === undefined) return examination;
  const report = new Report();
  examination.findings = report.findings;
  const document = parseDocument(container.metadata, report);
  if (document === undefined) return examination;
  examination.document = document;
  judgeVersion(document, report);
  if (!report.clean) return examination;
  examination.targets = judgeDocument(document, container.tensors, report);
  if (report.clean && data) judgeData(document, examination.targets, report);
  return examination;
}

/** */
function parseDocument(metadata, report) {
  if (metadata === undefined || metadata.size !== 1 || !metadata.has("loreg")) {
    return void report.add("R-011", "__metadata__", "it is not the one entry loreg");
  }
  try {
    const document = parseJson(metadata.get("loreg"));
    if (isObject(document)) return document;
    return void report.add("R-012", "document", "it is no object");
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    return void report.add("R-012", "document", error.message);
  }
}

/** @param {Map<string, any>} document @returns {string[]} the names in `requires.read`, whatever else is wrong with it */
export function requiredFeatures(document) {
  const requires = document.get("requires");
  const read = isObject(requires) ? requires.get("read") : undefined;
  return Array.isArray(read) ? read.filter(isString) : [];
}

/** R-013, then R-015. */
function judgeVersion(document, report) {
  if (integerOf(document.get("loreg")) !== 1) return report.add("R-013", "loreg", "it is not the integer 1");
  for (const name of requiredFeatures(document)) {
    if (!FEATURES.includes(name)) report.add("R-015", "requires.read", `the feature ${JSON.stringify(name)} is unknown`);
  }
}

/** All other rules about the header and the document; returns the targets that are sound by themselves. */
function judgeDocument(document, tensors, report) {
  const unsoundKeys = judgeKeys(tensors, report);
  judgeFields(document, report);
  const features = requiredFeatures(document);
  if (document.has("gate") && !features.includes("gate")) {
    report.add("R-017", "gate", "requires.read does not name gate");
  }
  const fields = document.get("targets");
  const stated = new Set();
  const sound = [];
  if (!isObject(fields) || fields.size === 0) report.add("R-020", "targets", "it is no object with a target");
  for (const [name, field] of isObject(fields) ? fields : []) {
    const before = report.findings.length;
    judgeFieldsOfTarget(name, field, tensors, features, report);
    const roles = isObject(field) && isObject(field.get("tensors")) ? [...field.get("tensors").keys()] : [];
    const keys = roles.map((role) => `${name}/${role}`);
    for (const key of keys) {
      stated.add(key);
      if (!tensors.has(key)) report.add("R-027", `targets.${name}`, `the file has no tensor ${key}`);
    }
    if (report.findings.length > before || keys.some((key) => unsoundKeys.has(key))) continue;
    const target = targetOf(name, field, tensors);
    judgeTargetAsAWhole(target, field, report);
    sound.push(target);
  }
  for (const key of tensors.keys()) {
    if (!stated.has(key)) report.add("R-027", key, "no target states this tensor");
  }
  return sound;
}

/** returns the keys that break one of them. */
function judgeKeys(tensors, report) {
  const unsound = new Set();
  for (const [key, { shape }] of tensors) {
    if (!isName(key)) report.add("R-009", key, "its key is not 1 to 256 visible ASCII characters");
    if (shape.includes(0)) report.add("R-038", key, "it has an axis of no length");
    if (!isName(key) || shape.includes(0)) unsound.add(key);
  }
  return unsound;
}

/** the only rules that look at elements. */
function judgeData(document, targets, report) {
  for (const { name, kind, shape, tensors } of targets) {
    const digests = document.get("targets").get(name).get("tensors");
    for (const [role, { bytes }] of tensors) {
      if (digestOf(bytes) !== digests.get(role)) report.add("R-035", `${name}/${role}`, "its bytes have another digest");
    }
    if (kind === "sparse" && !isIndexOf(tensors.get("index").bytes, elementCount(shape))) {
      report.add("R-045", `${name}/index`, "it does not name elements in ascending order");
    }
  }
}

function isIndexOf(bytes, count) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let last = -1n;
  for (let at = 0; at < bytes.length; at += 8) {
    const index = view.getBigInt64(at, true);
    if (index <= last || index >= count) return false;
    last = index;
  }
  return true;
}
