/**
 * The container: safetensors in the strict profile of section 6.
 *
 * @typedef {object} Tensor
 * @property {string} dtype
 * @property {number[]} shape
 * @property {Uint8Array} bytes  a view of the file
 *
 * @typedef {object} Container
 * @property {Map<string, string> | undefined} metadata
 * @property {Map<string, Tensor>} tensors by key
 */
import { JsonError, byCodeUnits, canonicalJson, decodeUtf8, integerOf, parseJson } from "./json.mjs";
import { ELEMENT_SIZES } from "./numbers.mjs";
import { Report } from "./errors.mjs";

const LONGEST_HEADER = 33_554_432;
const MOST_TENSORS = 65_536;
const MOST_AXES = 8;
export const LONGEST_AXIS = 1_099_511_627_776;
const RECORD = ["dtype", "shape", "data_offsets"];

/** @param {unknown} value @param {number} least @returns {number[] | undefined} a list of integers in range, or nothing */
export function integers(value, least, most = Number.MAX_SAFE_INTEGER) {
  if (!Array.isArray(value)) return undefined;
  const numbers = value.map(integerOf);
  return numbers.every((number) => number !== undefined && number >= least && number <= most) ? numbers : undefined;
}

/** @param {number[]} shape @returns {bigint} number of elements: sizes are exact, however large */
export const elementCount = (shape) => shape.reduce((product, length) => product * BigInt(length), 1n);

/** @param {Uint8Array} bytes @param {Report} report @returns {Map<string, any> | undefined} */
function parseHeader(bytes, report) {
  if (bytes.length < 8) return void report.add("R-001", "file", "it has fewer than 8 bytes");
  const length = new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true);
  if (length > LONGEST_HEADER) return void report.add("R-001", "file", `its header has ${length} bytes`);
  if (bytes.length - 8 < Number(length)) return void report.add("R-001", "file", "it ends within its header");
  const text = bytes.subarray(8, 8 + Number(length));
  if (text[0] !== 0x7b) return void report.add("R-002", "header", "it does not begin with {");
  try {
    return parseJson(decodeUtf8(text));
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    return void report.add("R-002", "header", error.message);
  }
}

/** */
function judgeRecords(header, report) {
  const records = [...header].filter(([key]) => key !== "__metadata__");
  if (records.length > MOST_TENSORS) report.add("R-010", "header", `it has ${records.length} tensors`);
  const metadata = header.get("__metadata__");
  if (header.has("__metadata__")) {
    const strings = metadata instanceof Map && [...metadata.values()].every((value) => typeof value === "string");
    if (!strings) report.add("R-004", "__metadata__", "it is not a map from strings to strings");
  }
  for (const [key, record] of records) {
    if (!(record instanceof Map)) {
      report.add("R-004", key, "it is not a tensor record");
      continue;
    }
    if (record.size !== RECORD.length || !RECORD.every((name) => record.has(name))) {
      report.add("R-004", key, `its members are not ${RECORD.join(", ")}`);
    }
    if (record.has("dtype") && !ELEMENT_SIZES.has(record.get("dtype"))) {
      report.add("R-005", key, "its element type is unknown");
    }
    if (record.has("shape")) {
      const shape = integers(record.get("shape"), 0, LONGEST_AXIS);
      if (shape === undefined || shape.length > MOST_AXES) report.add("R-006", key, "its shape is not one");
    }
  }
  return records;
}

/** R-007, then R-008, then R-003; returns the extents in the order of their offsets. */
function judgeOffsets(records, dataLength, report) {
  const extents = [];
  for (const [key, record] of records) {
    const shape = integers(record.get("shape"), 0);
    const size = elementCount(shape) * BigInt(ELEMENT_SIZES.get(record.get("dtype")));
    const offsets = integers(record.get("data_offsets"), 0);
    if (offsets === undefined || offsets.length !== 2 || BigInt(offsets[1]) - BigInt(offsets[0]) !== size) {
      report.add("R-007", key, `its offsets do not span ${size} bytes`);
    } else extents.push({ key, dtype: record.get("dtype"), shape, begin: offsets[0], end: offsets[1] });
  }
  if (!report.clean) return [];
  extents.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = 0;
  for (const extent of extents) {
    if (extent.begin !== end) report.add("R-008", extent.key, `it begins at ${extent.begin} and not at ${end}`);
    end = extent.end;
  }
  if (report.clean && end !== dataLength) {
    report.add("R-003", "data", `it has ${dataLength} bytes and the tensors end at ${end}`);
  }
  return extents;
}

/**
 * Reads a container; where a step finds a rule broken, those after it are not judged.
 *
 * @param {Uint8Array} bytes
 * @returns {{container: Container | undefined, findings: import("./errors.mjs").Finding[]}}
 */
export function parseContainer(bytes) {
  const report = new Report();
  const header = parseHeader(bytes, report);
  const broken = { container: undefined, findings: report.findings };
  if (header === undefined) return broken;
  const records = judgeRecords(header, report);
  if (!report.clean) return broken;
  const start = 8 + Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  const extents = judgeOffsets(records, bytes.length - start, report);
  if (!report.clean) return broken;
  const tensors = new Map();
  for (const { key, dtype, shape, begin, end } of extents) {
    tensors.set(key, { dtype, shape, bytes: bytes.subarray(start + begin, start + end) });
  }
  return { container: { metadata: header.get("__metadata__"), tensors }, findings: [] };
}

/**
 * The bytes of a container as a writer makes it (P-020, P-021).
 *
 * @param {Map<string, string>} metadata
 * @param {Map<string, Tensor>} tensors
 * @returns {Uint8Array}
 */
export function writeContainer(metadata, tensors) {
  const size = ({ dtype }) => ELEMENT_SIZES.get(dtype);
  const placed = [...tensors].sort(([a, x], [b, y]) => size(y) - size(x) || byCodeUnits(a, b));
  const header = new Map([["__metadata__", metadata]]);
  let end = 0;
  for (const [key, { dtype, shape, bytes }] of placed) {
    const offsets = [end, end + bytes.length];
    header.set(key, new Map([["dtype", dtype], ["shape", shape], ["data_offsets", offsets]]));
    end += bytes.length;
  }
  const text = new TextEncoder().encode(canonicalJson(header));
  const length = Math.ceil(text.length / 8) * 8;
  const file = new Uint8Array(8 + length + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.fill(0x20, 8, 8 + length);
  file.set(text, 8);
  let at = 8 + length;
  for (const [, { bytes }] of placed) {
    file.set(bytes, at);
    at += bytes.length;
  }
  return file;
}
