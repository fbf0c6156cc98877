/**
 * The change of a target as a matrix without its scale, in logical order: (out, in · k…), experts over each other
 * (sections 5 and 5.1, and the registered kinds of extensions.md). All in binary64.
 */
import { axes } from "./kinds.mjs";
import { decode } from "./numbers.mjs";

/**
 * A product of two factors that makes some consecutive rows of the change.
 *
 * @typedef {object} Block
 * @property {Float64Array} left     B, (rows, rank)
 * @property {Float64Array} right    A, (rank, columns)
 * @property {number} rank
 *
 * @typedef {object} Change
 * @property {number} rows
 * @property {number} columns
 * @property {Block[] | undefined} blocks  of equal numbers of rows, where the change is made of products only
 * @property {(row: number, into: Float64Array) => void} fill  writes one row
 */

const product = (lengths) => lengths.reduce((result, length) => result * length, 1);

/** Adds row `row` of left · right to `into`. */
function addRow({ left, right, rank }, row, into) {
  const columns = into.length;
  for (let t = 0; t < rank; t += 1) {
    const factor = left[row * rank + t];
    const start = t * columns;
    for (let k = 0; k < columns; k += 1) into[k] += factor * right[start + k];
  }
}

/** @returns {Change} */
function ofBlocks(blocks, rows, columns) {
  const height = rows / blocks.length;
  return {
    rows,
    columns,
    blocks,
    fill(row, into) {
      into.fill(0);
      addRow(blocks[Math.floor(row / height)], row % height, into);
    },
  };
}

/** Cuts factors into as many products as there are experts or groups. */
function cut(left, right, rank, count) {
  const [l, r] = [left.length / count, right.length / count];
  return Array.from({ length: count }, (_, index) => ({
    left: left.subarray(index * l, (index + 1) * l),
    right: right.subarray(index * r, (index + 1) * r),
    rank,
  }));
}

/** @returns {Change} */
function loha(values, ranks, rows, columns) {
  const first = { left: values.B1, right: values.A1, rank: ranks.A1 };
  const second = { left: values.B2, right: values.A2, rank: ranks.A2 };
  const other = new Float64Array(columns);
  return {
    rows,
    columns,
    blocks: undefined,
    fill(row, into) {
      into.fill(0);
      other.fill(0);
      addRow(first, row, into);
      addRow(second, row, other);
      for (let k = 0; k < columns; k += 1) into[k] *= other[k];
    },
  };
}

/** A factor of a Kronecker product: given whole, or as left · right. */
function whole(given, left, right, rank) {
  if (given !== undefined) return given;
  const [rows, columns] = [left.length / rank, right.length / rank];
  const result = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row += 1) {
    addRow({ left, right, rank }, row, result.subarray(row * columns, (row + 1) * columns));
  }
  return result;
}

/** @returns {Change} */
function lokr(values, ranks, shapes, rows, columns) {
  const first = whole(values.C1, values.B1, values.A1, ranks.A1);
  const second = whole(values.C2, values.B2, values.A2, ranks.A2);
  const firstRows = (shapes.C1 ?? shapes.B1)[0];
  const firstColumns = first.length / firstRows;
  const secondRows = rows / firstRows;
  const secondColumns = second.length / secondRows; // the kernel included, which is the last axis of both
  return {
    rows,
    columns,
    blocks: undefined,
    fill(row, into) {
      const [a, b] = [Math.floor(row / secondRows), row % secondRows];
      for (let c = 0; c < firstColumns; c += 1) {
        const factor = first[a * firstColumns + c];
        for (let k = 0; k < secondColumns; k += 1) {
          into[c * secondColumns + k] = factor * second[b * secondColumns + k];
        }
      }
    },
  };
}

/**
 * The change of a target, its scale left out; `undefined` for kinds that have none (`full`, `tokens`) and for `sparse`,
 * whose change is a list of elements.
 *
 * @param {import("./targets.mjs").Target} target
 * @returns {Change | undefined}
 */
export function changeOf(target) {
  const { kind, layout, shape, groups, tensors } = target;
  if (kind === "full" || kind === "tokens" || kind === "sparse") return undefined;
  const values = {};
  const shapes = {};
  for (const [role, tensor] of tensors) {
    if (role === "magnitude" || role === "value") continue;
    values[role] = decode(tensor.dtype, tensor.bytes);
    shapes[role] = tensor.shape;
  }
  const ranks = { A1: shapes.A1?.[0], A2: shapes.A2?.[0] };
  const size = axes(layout, shape);
  const columns = size.in * product(size.kernel);
  switch (kind) {
    case "bias":
      return ofBlocks([{ left: values.delta, right: Float64Array.of(1), rank: 1 }], size.out, 1);
    case "conv":
      return ofBlocks(cut(values.B, values.A, shapes.A[0] / groups, groups), size.out, columns * groups);
    case "experts":
      return ofBlocks(cut(values.B, values.A, shapes.A[1], size.experts), size.experts * size.out, columns);
    case "loha":
      return loha(values, ranks, size.out, columns);
    case "lokr":
      return lokr(values, ranks, shapes, size.out, columns);
    default:
      return ofBlocks(cut(values.B, values.A, shapes.A[0], 1), size.out, columns);
  }
}

/**
 * The elements of a sparse change, its scale left out.
 *
 * @param {import("./targets.mjs").Target} target of the kind `sparse`
 * @returns {{index: Float64Array, delta: Float64Array}}
 */
export function elementsOf({ tensors }) {
  const [index, delta] = [tensors.get("index"), tensors.get("delta")];
  return { index: decode(index.dtype, index.bytes), delta: decode(delta.dtype, delta.bytes) };
}
