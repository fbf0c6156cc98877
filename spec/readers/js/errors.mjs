/**
 * What is wrong with a file, and the error that refuses it (adapter format 1.0, section 15).
 *
 * @typedef {object} Finding
 * @property {string} rule      id of the rule that is broken, such as `R-029`
 * @property {"error"} severity
 * @property {string} place     where in the header or the document
 * @property {string} message   one sentence
 */

/** Codes of refusal, in the order of the table of section 15. */
const UNSUPPORTED = new Set(["R-013", "R-015"]);
const INTEGRITY = new Set(["R-035"]);

/**
 * The code that a reader refuses with, for the rules that a file breaks.
 *
 * @param {Finding[]} findings at least one
 * @returns {"unsupported" | "invalid-input" | "integrity"}
 */
export function refusalCode(findings) {
  if (findings.some(({ rule }) => UNSUPPORTED.has(rule))) return "unsupported";
  return findings.every(({ rule }) => INTEGRITY.has(rule)) ? "integrity" : "invalid-input";
}

/** A refusal: its `code` is one of the format's, its `findings` are the rules broken, if any. */
export class AdapterError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {Finding[]} [findings]
   */
  constructor(code, message, findings = []) {
    super(message);
    this.name = "AdapterError";
    this.code = code;
    this.findings = findings;
  }
}

/**
 * Throws where there is a finding, and does nothing otherwise.
 *
 * @param {Finding[]} findings
 */
export function refuse(findings) {
  if (findings.length === 0) return;
  const [{ rule, place, message }] = findings;
  throw new AdapterError(refusalCode(findings), `${rule} ${place}: ${message}`, findings);
}

/** Collects findings while a step judges its rules. */
export class Report {
  constructor() {
    /** @type {Finding[]} */
    this.findings = [];
  }

  /** @param {string} rule @param {string} place @param {string} message */
  add(rule, place, message) {
    this.findings.push({ rule, severity: "error", place, message });
  }

  get clean() {
    return this.findings.length === 0;
  }
}
