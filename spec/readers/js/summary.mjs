/** What there is to say about a file, as plain data that a page shows: no number of it is larger than the page needs. */
import * as loreg from "./loreg.mjs";
import { examine } from "./rules.mjs";
import { refusalCode } from "./errors.mjs";

const MOST_SHOWN = 500;

/**
 * @typedef {object} Summary
 * @property {boolean} sound
 * @property {string | undefined} code   of the refusal
 * @property {import("./errors.mjs").Finding[]} findings
 * @property {[string, string][]} facts  what it is, for people
 * @property {string[][]} targets        name, kind, layout, shape, scale, tensors, fingerprint
 * @property {string[][]} probe          name, component, eight numbers
 * @property {number} hidden             rows of the longest of these lists that are left out
 */

/** The heads of the columns of `targets`. */
export const TARGET_COLUMNS = ["target", "kind", "layout", "base shape", "scale", "tensors", "fingerprint"];
/** The heads of the columns of `probe`. */
export const PROBE_COLUMNS = ["target", "component", ...Array.from({ length: 8 }, (_, j) => `p${j}`)];

/**
 * A string of a stranger, fit to be shown (P-036): control characters, and characters that turn the direction of text,
 * as escapes.
 *
 * @param {string} text
 * @returns {string}
 */
export function shown(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** @param {string} digest @returns {string} enough of it to compare by eye */
const short = (digest) => `${digest.slice(0, "sha256:".length + 12)}…`;

const times = (shape) => (shape.length === 0 ? "()" : shape.join(" × "));

function targetRow({ name, kind, layout, shape, scale, length, fingerprint, tensors }) {
  const described = [...tensors].map(([role, { dtype, shape: axes }]) => `${role} ${dtype} ${times(axes)}`);
  const grown = length === undefined ? "" : ` → ${length} rows`;
  return [
    shown(name),
    kind,
    layout.join(" "),
    (shape === undefined ? "" : times(shape)) + grown,
    kind === "full" || kind === "tokens" ? "" : String(scale),
    described.join("\n"),
    fingerprint === undefined ? "" : short(fingerprint),
  ];
}

/** Strings of the document for people, in the order of interest. */
function facts(adapter) {
  const { document, targets, tensors } = adapter;
  const text = (object, field) => {
    const value = document.get(object)?.get(field);
    return typeof value === "string" ? shown(value) : undefined;
  };
  const read = document.get("requires")?.get("read") ?? [];
  const parents = document.get("lineage")?.get("parents")?.length;
  let bytes = 0;
  for (const tensor of tensors.values()) bytes += tensor.bytes.length;
  const rows = [
    ["title", text("info", "title")],
    ["description", text("info", "description")],
    ["license", text("info", "license")],
    ["base", text("base", "name")],
    ["base revision", text("base", "revision")],
    ["base license", text("base", "license")],
    ["trained on the view", document.get("base")?.get("view") && shown(document.get("base").get("view").get("scheme"))],
    ["gate", document.has("gate") ? `tokens ${document.get("gate").get("tokens").map((id) => id.value).join(", ")}` : undefined],
    ["trained with", text("training", "tool")],
    ["made by", text("lineage", "operation") && `${text("lineage", "operation")} of ${parents ?? 0} parents`],
    ["needs", read.length > 0 ? read.join(", ") : undefined],
    ["size", `${targets.length} targets, ${tensors.size} tensors, ${bytes} bytes of data`],
    ["content digest", loreg.contentDigest(adapter)],
    ["root digest", loreg.adapterRoot(adapter)],
  ];
  return rows.filter(([, value]) => value !== undefined);
}

/** A number with six digits, as wide as the others. */
const figure = (number) => (Number.isInteger(number) && Math.abs(number) < 1e9 ? String(number) : number.toPrecision(6));

function probeRows(adapter) {
  try {
    return [...loreg.probe(adapter)].flatMap(([name, components]) =>
      [...components].map(([component, numbers]) => [shown(name), component, ...numbers.map(figure)]),
    );
  } catch (error) {
    if (!(error instanceof loreg.AdapterError)) throw error;
    return [[shown(error.message), ...new Array(PROBE_COLUMNS.length - 1).fill("")]];
  }
}

/**
 * Examines a file, and says what a page shows of it.
 *
 * @param {Uint8Array} bytes
 * @returns {Summary}
 */
export function summarize(bytes) {
  const { findings, document, container, targets } = examine(bytes);
  const sound = findings.length === 0;
  const adapter = { document, tensors: container?.tensors, targets };
  const lists = {
    findings: findings.map((finding) => ({ ...finding, place: shown(finding.place), message: shown(finding.message) })),
    targets: targets.map(targetRow),
    probe: sound ? probeRows(adapter) : [],
  };
  const longest = Math.max(...Object.values(lists).map(({ length }) => length));
  for (const name of Object.keys(lists)) lists[name] = lists[name].slice(0, MOST_SHOWN);
  return {
    sound,
    code: sound ? undefined : refusalCode(findings),
    facts: sound ? facts(adapter) : [],
    hidden: Math.max(0, longest - MOST_SHOWN),
    ...lists,
  };
}
