/**
 * The kinds of section 5 and of the register, as tables.
 *
 * @typedef {object} Kind
 * @property {string[]} layouts    axes joined by spaces; none where the kind has no layout
 * @property {string[][]} forms    each a list of roles that is complete
 * @property {string[]} optional   roles besides
 * @property {boolean} scaled      whether it has a scale
 * @property {boolean} fused       whether it is free to have segments
 * @property {boolean} mutable     whether it is free to have initial ranks
 * @property {string} [feature]    that has to be in `requires.read`
 * @property {boolean} logical     whether its fingerprint is taken out before in
 */

const MATRICES = ["out in", "in out"];
const KERNELS = ["out in k", "out in k k", "out in k k k"];
const PLAIN = { optional: [], scaled: false, fused: false, mutable: false, logical: false };

/** @type {Map<string, Kind>} */
export const KINDS = new Map(
  Object.entries({
    linear: {
      ...PLAIN,
      layouts: MATRICES,
      forms: [["A", "B"]],
      optional: ["magnitude", "value"],
      scaled: true,
      fused: true,
      mutable: true,
      logical: true,
    },
    embedding: {
      ...PLAIN,
      layouts: ["in out"],
      forms: [["A", "B"]],
      optional: ["magnitude", "value"],
      scaled: true,
      mutable: true,
    },
    conv: {
      ...PLAIN,
      layouts: KERNELS,
      forms: [["A", "B"]],
      optional: ["magnitude", "value"],
      scaled: true,
      mutable: true,
    },
    experts: {
      ...PLAIN,
      layouts: ["expert out in", "expert in out"],
      forms: [["A", "B"]],
      optional: ["value"],
      scaled: true,
      fused: true,
      mutable: true,
      logical: true,
    },
    bias: { ...PLAIN, layouts: ["out"], forms: [["delta"]], scaled: true, fused: true },
    full: { ...PLAIN, layouts: [], forms: [["value"]] },
    tokens: { ...PLAIN, layouts: ["in out"], forms: [["value"]] },
    loha: {
      ...PLAIN,
      layouts: [...MATRICES, ...KERNELS],
      forms: [["A1", "B1", "A2", "B2"]],
      optional: ["magnitude", "value"],
      scaled: true,
      fused: true,
      logical: true,
      feature: "loha",
    },
    lokr: {
      ...PLAIN,
      layouts: [...MATRICES, ...KERNELS],
      forms: [
        ["C1", "C2"],
        ["C1", "A2", "B2"],
        ["A1", "B1", "C2"],
        ["A1", "B1", "A2", "B2"],
      ],
      optional: ["magnitude", "value"],
      scaled: true,
      fused: true,
      logical: true,
      feature: "lokr",
    },
    sparse: { ...PLAIN, layouts: [], forms: [["index", "delta"]], scaled: true, feature: "sparse" },
  }),
);

/** Features that this reader implements. */
export const FEATURES = ["gate", "loha", "lokr", "sparse"];

/**
 * What a shape means under a layout.
 *
 * @param {string[]} layout
 * @param {number[]} shape
 * @returns {{out: number, in: number, experts: number, kernel: number[]}} lengths; 1 for an axis that there is not
 */
export function axes(layout, shape) {
  const length = (axis) => (layout.includes(axis) ? shape[layout.indexOf(axis)] : 1);
  return {
    out: length("out"),
    in: length("in"),
    experts: length("expert"),
    kernel: shape.filter((_, index) => layout[index] === "k"),
  };
}

/**
 * Whether the base stores the transpose of the logical order, out before in, of a kind whose equation has it.
 *
 * @param {string[]} layout
 * @returns {boolean}
 */
export const storesInFirst = (layout) => layout.indexOf("in") >= 0 && layout.indexOf("in") < layout.indexOf("out");
