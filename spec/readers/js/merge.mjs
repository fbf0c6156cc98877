/** W' of sections 5 and 10, written in the element type of the base. */
import { AdapterError } from "./errors.mjs";
import { ELEMENT_SIZES, decode, encode, isFloat } from "./numbers.mjs";
import { axes, storesInFirst } from "./kinds.mjs";
import { changeOf, elementsOf } from "./change.mjs";
import { fingerprint } from "./identity.mjs";

/** @typedef {import("./container.mjs").Tensor} Tensor */

const sameShape = (a, b) => a.length === b.length && a.every((length, axis) => length === b[axis]);

/**
 * @param {import("./loreg.mjs").Adapter} adapter
 * @throws {AdapterError} `unsupported` for a gate (P-046) and a grouped convolution (P-006)
 */
export function refuseUnmergeable(adapter) {
  if (adapter.document.has("gate")) throw new AdapterError("unsupported", "P-046: an adapter with a gate is not merged");
  for (const { name, groups } of adapter.targets) {
    if (groups > 1) throw new AdapterError("unsupported", `P-006 ${name}: a grouped convolution has no place in its base`);
  }
}

/**
 * The tensors of a base that an adapter changes, changed.
 *
 * @param {import("./loreg.mjs").Adapter} adapter
 * @param {Map<string, Tensor>} base tensors by name
 * @returns {{tensors: Map<string, Tensor>, fingerprints: Map<string, "same" | "other" | "none">}}
 * @throws {AdapterError} `invalid-input` for a tensor that is missing or has another shape (P-012), a result that is
 *   not finite (P-016), and element types that do not fit (P-054)
 */
export function mergeTensors(adapter, base) {
  const tensors = new Map();
  const fingerprints = new Map();
  for (const target of adapter.targets) {
    const tensor = baseTensor(target, base);
    tensors.set(target.name, mergedTensor(target, tensor));
    const stated = target.fingerprint;
    const same = stated !== undefined && stated === fingerprint(tensor, target.kind, target.layout);
    fingerprints.set(target.name, stated === undefined ? "none" : same ? "same" : "other");
  }
  return { tensors, fingerprints };
}

/** The tensor that a target changes (P-012). */
function baseTensor(target, base) {
  const refuse = (message) => {
    throw new AdapterError("invalid-input", `P-012 ${target.name}: ${message}`);
  };
  const tensor = base.get(target.name) ?? refuse("the base has no tensor of this name");
  const shape = target.shape ?? [tensor.shape[0], target.tensors.get("value").shape[1]];
  if (!sameShape(tensor.shape, shape)) refuse(`the base tensor has the shape (${tensor.shape.join(", ")})`);
  if (target.length === undefined && target.rows.some((row) => row >= shape[0])) refuse("the base has not all of its rows");
  return tensor;
}

/** @param {import("./targets.mjs").Target} target @param {Tensor} tensor @returns {Tensor} */
function mergedTensor(target, tensor) {
  const merged = changed(target, tensor);
  if (isFloat(tensor.dtype)) checkFinite(target, tensor, merged);
  return merged;
}

/** @returns {Tensor} */
function changed(target, tensor) {
  switch (target.kind) {
    case "full":
      return converted(target, target.tensors.get("value"), tensor.dtype);
    case "tokens":
      return withRows(target, tensor);
    case "sparse":
      return withElements(target, tensor);
    default:
      return withChange(target, tensor);
  }
}

/** P-016; a value beside factors stands for W, and rows that are added have no W at all. */
function checkFinite(target, tensor, merged) {
  const stands = target.tensors.has("value") && target.kind !== "full" && target.kind !== "tokens";
  const w = stands ? target.tensors.get("value") : tensor;
  const before = decode(w.dtype, w.bytes);
  const wasFinite = (index) => index >= before.length || Number.isFinite(before[index]);
  if (decode(merged.dtype, merged.bytes).some((element, index) => !Number.isFinite(element) && wasFinite(index))) {
    throw new AdapterError("invalid-input", `P-016 ${target.name}: an element of the result is not finite`);
  }
}

function refuseIntegers(target, dtype) {
  throw new AdapterError("invalid-input", `P-054 ${target.name}: the base stores ${dtype}, which has no place for the result`);
}

/** A value in the element type of the base: its bytes where that is its own. @returns {Tensor} */
function converted(target, value, dtype) {
  if (value.dtype === dtype) return value;
  if (!isFloat(dtype) || !isFloat(value.dtype)) refuseIntegers(target, dtype);
  return { dtype, shape: value.shape, bytes: encode(dtype, decode(value.dtype, value.bytes)) };
}

/** @returns {Tensor} */
function withRows(target, { dtype, shape, bytes }) {
  const value = converted(target, target.tensors.get("value"), dtype);
  const width = shape[1] * ELEMENT_SIZES.get(dtype);
  const rows = target.length ?? shape[0];
  const merged = new Uint8Array(rows * width);
  merged.set(bytes);
  target.rows.forEach((row, index) => {
    merged.set(value.bytes.subarray(index * width, (index + 1) * width), row * width);
  });
  return { dtype, shape: [rows, shape[1]], bytes: merged };
}

/** @returns {Tensor} */
function withElements(target, { dtype, shape, bytes }) {
  if (!isFloat(dtype)) refuseIntegers(target, dtype);
  const size = ELEMENT_SIZES.get(dtype);
  const merged = bytes.slice();
  const { index, delta } = elementsOf(target);
  index.forEach((at, n) => {
    const place = merged.subarray(at * size, (at + 1) * size);
    place.set(encode(dtype, Float64Array.of(decode(dtype, place)[0] + target.scale * delta[n])));
  });
  return { dtype, shape, bytes: merged };
}

/** The kinds whose change is a matrix, with or without magnitude and value. @returns {Tensor} */
function withChange(target, { dtype, shape, bytes }) {
  if (!isFloat(dtype)) refuseIntegers(target, dtype);
  const value = target.tensors.get("value");
  const result = value === undefined ? decode(dtype, bytes) : decode(value.dtype, value.bytes);
  const magnitude = target.tensors.get("magnitude");
  const norms = magnitude && decode(magnitude.dtype, magnitude.bytes);
  const change = changeOf(target);
  const { out } = axes(target.layout, shape);
  const turned = storesInFirst(target.layout);
  const line = new Float64Array(change.columns);
  for (let row = 0; row < change.rows; row += 1) {
    change.fill(row, line);
    const expert = Math.floor(row / out) * out * change.columns;
    const place = turned ? (k) => expert + k * out + (row % out) : (k) => row * change.columns + k;
    for (let k = 0; k < line.length; k += 1) line[k] = result[place(k)] + target.scale * line[k];
    if (norms) normalize(line, norms[row]);
    for (let k = 0; k < line.length; k += 1) result[place(k)] = line[k];
  }
  return { dtype, shape, bytes: encode(dtype, result) };
}

/** m · v / ‖v‖ (section 5.2); by a power of two, so that squares neither overflow nor vanish. */
function normalize(line, magnitude) {
  const largest = line.reduce((most, element) => Math.max(most, Math.abs(element)), 0);
  const unit = largest > 0 && Number.isFinite(largest) ? 2 ** Math.floor(Math.log2(largest)) : 1;
  let squares = 0;
  for (const element of line) squares += (element / unit) ** 2;
  const norm = Math.sqrt(squares);
  for (let k = 0; k < line.length; k += 1) line[k] = (magnitude * (line[k] / unit)) / norm;
}
