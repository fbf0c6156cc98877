/** Probe certificates (section 11.1): eight numbers for each component of each target, in binary64. */
import { AdapterError } from "./errors.mjs";
import { Sha256 } from "./sha256.mjs";
import { changeOf, elementsOf } from "./change.mjs";
import { logicalTensor } from "./identity.mjs";
import { decode } from "./numbers.mjs";

const COUNT = 8;
const DIGEST_BITS = 256;

const product = (lengths) => lengths.reduce((result, length) => result * length, 1);

/** Signs of one stream, which grow as they are asked for. */
class Signs {
  /** @param {"left" | "right"} side @param {number} j */
  constructor(side, j) {
    this.prefix = `loreg-probe-v1/${side}/${j}/`;
    this.signs = new Float64Array(0);
  }

  /** @param {number} length @returns {Float64Array} at least so many signs, each 1 or -1 */
  upTo(length) {
    if (this.signs.length >= length) return this.signs;
    const known = this.signs.length / DIGEST_BITS;
    const blocks = Math.max(Math.ceil(length / DIGEST_BITS), 2 * known);
    const signs = new Float64Array(blocks * DIGEST_BITS);
    signs.set(this.signs);
    for (let n = known; n < blocks; n += 1) {
      const digest = new Sha256().update(new TextEncoder().encode(`${this.prefix}${n}`)).digest();
      for (let bit = 0; bit < DIGEST_BITS; bit += 1) {
        signs[n * DIGEST_BITS + bit] = (digest[bit >> 3] >> (bit & 7)) & 1 ? -1 : 1;
      }
    }
    this.signs = signs;
    return signs;
  }
}

const LEFT = Array.from({ length: COUNT }, (_, j) => new Signs("left", j));
const RIGHT = Array.from({ length: COUNT }, (_, j) => new Signs("right", j));

/** Thrown where binary64 does not hold a partial product: what follows from it is not within P-051. */
class OutOfRange extends Error {}

const SMALLEST_NORMAL = 2 ** -1022;
const NEGLIGIBLE = 2 ** -40;

/** A product that is not allowed to vanish below the normal numbers, nor to leave them above. */
function times(a, b) {
  const result = a * b;
  if (!Number.isFinite(result)) throw new OutOfRange();
  if (Math.abs(result) < SMALLEST_NORMAL && a !== 0 && b !== 0) {
    if (Math.abs(result / b - a) > NEGLIGIBLE * Math.abs(a)) throw new OutOfRange();
  }
  return result;
}

/** Whether products of one element of each tensor stay normal, however small the elements are. */
function productsAreNormal(tensors) {
  let exponent = 0;
  for (const { dtype, bytes } of tensors) {
    let smallest = Infinity;
    for (const element of decode(dtype, bytes)) {
      if (element !== 0 && Math.abs(element) < smallest) smallest = Math.abs(element);
    }
    exponent += smallest === Infinity ? 0 : Math.log2(smallest);
  }
  return exponent > -1000;
}

/** Eight numbers, from a function of the two vectors of signs. */
const eight = (rows, columns, number) => LEFT.map((left, j) => number(left.upTo(rows), RIGHT[j].upTo(columns)));

function dot(line, signs) {
  let sum = 0;
  for (let k = 0; k < line.length; k += 1) sum += line[k] * signs[k];
  return sum;
}

/** Σ (uᵀB)(Av) over the blocks: nothing of the base's size is made. */
function ofBlocks({ blocks, rows, columns }) {
  const height = rows / blocks.length;
  return eight(rows, columns, (u, v) => {
    let sum = 0;
    blocks.forEach(({ left, right, rank }, block) => {
      for (let t = 0; t < rank; t += 1) {
        let column = 0;
        for (let i = 0; i < height; i += 1) column += u[block * height + i] * left[i * rank + t];
        sum += times(column, dot(right.subarray(t * columns, (t + 1) * columns), v));
      }
    });
    return sum;
  });
}

function ofRows({ rows, columns, fill }) {
  const sums = new Array(COUNT).fill(0);
  const line = new Float64Array(columns);
  const [lefts, rights] = [LEFT.map((left) => left.upTo(rows)), RIGHT.map((right) => right.upTo(columns))];
  for (let row = 0; row < rows; row += 1) {
    fill(row, line);
    for (let j = 0; j < COUNT; j += 1) sums[j] += lefts[j][row] * dot(line, rights[j]);
  }
  return sums;
}

/** A tensor as it is: its first axis by the product of the others. */
function ofTensor({ dtype, shape, bytes }) {
  const values = decode(dtype, bytes);
  const rows = shape.length === 0 ? 1 : shape[0];
  const columns = values.length / rows;
  return ofRows({ rows, columns, fill: (row, into) => into.set(values.subarray(row * columns, (row + 1) * columns)) });
}

function ofElements(target) {
  const { index, delta } = elementsOf(target);
  const rows = target.shape.length === 0 ? 1 : target.shape[0];
  const columns = product(target.shape) / rows;
  return eight(rows, columns, (u, v) => {
    let sum = 0;
    index.forEach((at, n) => {
      sum += u[Math.floor(at / columns)] * delta[n] * v[at % columns];
    });
    return sum;
  });
}

/** @param {import("./targets.mjs").Target} target @returns {number[]} of the component `change`, the scale left out */
function ofChange(target, change) {
  if (change === undefined) return ofElements(target);
  if (change.blocks) return ofBlocks(change);
  const factors = [...target.tensors].filter(([role]) => role !== "magnitude" && role !== "value");
  if (!productsAreNormal(factors.map(([, tensor]) => tensor))) throw new OutOfRange();
  return ofRows(change);
}

/** @param {import("./targets.mjs").Target} target @returns {Map<string, number[]>} components */
function probeTarget(target) {
  const components = new Map();
  const { kind, layout, scale, tensors } = target;
  const change = changeOf(target);
  if (change !== undefined || kind === "sparse") {
    components.set("change", ofChange(target, change).map((number) => times(scale, number)));
  }
  for (const role of ["magnitude", "value"]) {
    const tensor = tensors.get(role);
    if (tensor === undefined) continue;
    const numbers = ofTensor(role === "value" ? logicalTensor(tensor, kind, layout) : tensor);
    if (!numbers.every(Number.isFinite)) throw new OutOfRange();
    components.set(role, numbers);
  }
  return components;
}

/**
 * The probe certificate of an adapter: target to component to eight numbers.
 *
 * @param {import("./loreg.mjs").Adapter} adapter
 * @returns {Map<string, Map<string, number[]>>}
 * @throws {AdapterError} `invalid-input` where binary64 does not hold the numbers, or an element is not finite
 */
export function probeTargets({ targets }) {
  const certificate = new Map();
  for (const target of targets) {
    try {
      certificate.set(target.name, probeTarget(target));
    } catch (error) {
      if (!(error instanceof OutOfRange)) throw error;
      throw new AdapterError("invalid-input", `P-051 ${target.name}: its numbers are beyond what binary64 holds`);
    }
  }
  return certificate;
}
