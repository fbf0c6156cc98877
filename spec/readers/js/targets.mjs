/** Rules about one target (section 7.2): its fields by themselves, then against each other. */
import { LONGEST_AXIS, integers } from "./container.mjs";
import { JsonNumber, integerOf } from "./json.mjs";
import { KINDS, axes } from "./kinds.mjs";
import { isDigest, isObject, isString } from "./fields.mjs";
import { isFloat } from "./numbers.mjs";

const NAME = /^[\x21-\x7e]{1,256}$/;
const MOST_AXES = 8;

/** @param {unknown} name @returns {boolean} 1 to 256 characters from U+0021 to U+007E */
export const isName = (name) => NAME.test(name);

const sameList = (a, b) => a.length === b.length && a.every((item, index) => item === b[index]);
const isEvery = (members, list) => members.length === list.length && members.every((item) => list.includes(item));

/**
 * The fields of a target by themselves: of its tensors.
 *
 * @param {string} name
 * @param {unknown} target
 * @param {Map<string, import("./container.mjs").Tensor>} tensors of the file
 * @param {string[]} features named in `requires.read`
 * @param {import("./errors.mjs").Report} report
 */
export function judgeFieldsOfTarget(name, target, tensors, features, report) {
  const say = (rule, message) => report.add(rule, `targets.${name}`, message);
  if (!isName(name)) say("R-021", "its name is not 1 to 256 visible ASCII characters");
  const kind = isObject(target) ? KINDS.get(target.get("kind")) : undefined;
  if (kind === undefined) return say("R-022", "it is no object with a kind that there is");
  if (kind.feature !== undefined && !features.includes(kind.feature)) {
    say("R-017", `requires.read does not name ${kind.feature}`);
  }
  judgeLayoutAndShape(target, kind, say);
  const scale = target.get("scale");
  if (kind.scaled ? !(scale instanceof JsonNumber) : target.has("scale")) {
    say("R-025", kind.scaled ? "its scale is no number" : "a scale where nothing is scaled");
  }
  if (target.has("fingerprint") && !isDigest(target.get("fingerprint"))) say("R-036", "its fingerprint is no digest");
  const stated = target.get("tensors");
  if (!isObject(stated)) return say("R-026", "its tensors are no object");
  const required = [...stated.keys()].filter((role) => !kind.optional.includes(role));
  if (!kind.forms.some((form) => isEvery(form, required))) say("R-026", "its roles are not those of its kind");
  for (const [role, digest] of stated) {
    if (!isDigest(digest)) say("R-034", `what it states for ${role} is no digest`);
    const tensor = tensors.get(`${name}/${role}`);
    if (tensor === undefined || target.get("kind") === "full" || target.get("kind") === "tokens") continue;
    if (role === "index" ? tensor.dtype !== "I64" : !isFloat(tensor.dtype)) {
      say("R-028", `${tensor.dtype} is no element type for ${role}`);
    }
  }
}

function judgeLayoutAndShape(target, kind, say) {
  const layout = target.get("layout") ?? [];
  const known = Array.isArray(layout) && layout.every(isString);
  const optional = kind.layouts.length === 0;
  const joined = known ? layout.join(" ") : undefined;
  const listed = optional ? joined === "" : kind.layouts.includes(joined) && target.has("layout");
  if (!listed || target.get("layout") === null) say("R-023", "its layout is none of its kind's");
  if (!target.has("shape") && target.get("kind") === "tokens") return;
  const shape = integers(target.get("shape"), 1, LONGEST_AXIS);
  if (shape === undefined) say("R-024", "its shape is no list of lengths");
  else if (optional ? shape.length > MOST_AXES : listed && shape.length !== layout.length) {
    say("R-024", "its shape has another number of axes than its layout");
  }
}

/**
 * A target whose fields are sound by themselves, as the calculations take it.
 *
 * @typedef {object} Target
 * @property {string} name
 * @property {string} kind
 * @property {string[]} layout      empty where there is none
 * @property {number[] | undefined} shape
 * @property {number} scale         1 where there is none
 * @property {number} groups        1 where it is absent
 * @property {number[]} rows        empty where there are none, and where they are no list of integers
 * @property {number | undefined} length
 * @property {string | undefined} fingerprint
 * @property {Map<string, import("./container.mjs").Tensor>} tensors by role
 */

/**
 * @param {string} name
 * @param {Map<string, any>} field  the target of the document
 * @param {Map<string, import("./container.mjs").Tensor>} tensors of the file
 * @returns {Target}
 */
export function targetOf(name, field, tensors) {
  const roles = [...field.get("tensors").keys()];
  return {
    name,
    kind: field.get("kind"),
    layout: field.get("layout") ?? [],
    shape: field.has("shape") ? field.get("shape").map(integerOf) : undefined,
    scale: field.get("scale")?.value ?? 1,
    groups: integerOf(field.get("groups")) ?? 1,
    rows: integers(field.get("rows"), 0) ?? [],
    length: integerOf(field.get("length")),
    fingerprint: field.get("fingerprint"),
    tensors: new Map(roles.map((role) => [role, tensors.get(`${name}/${role}`)])),
  };
}

/**
 * The fields of a target against each other.
 *
 * @param {Target} target
 * @param {Map<string, any>} field
 * @param {import("./errors.mjs").Report} report
 */
export function judgeTargetAsAWhole(target, field, report) {
  const say = (rule, message) => report.add(rule, `targets.${target.name}`, message);
  const kind = KINDS.get(target.kind);
  const size = axes(target.layout, target.shape ?? []);
  const shapeOf = (role) => target.tensors.get(role)?.shape;
  const dividesBoth = (groups) => groups >= 1 && shapeOf("A")?.[0] % groups === 0 && size.out % groups === 0;
  if (field.has("groups") && !(target.kind === "conv" && dividesBoth(integerOf(field.get("groups"))))) {
    say("R-032", "its groups do not divide r and out");
  } else judgeFactors(target, size, shapeOf, say);
  const magnitude = shapeOf("magnitude");
  if (magnitude !== undefined && !sameList(magnitude, [size.out])) say("R-030", "its magnitude is not (out)");
  judgeRows(target, field, say);
  judgeValues(target, shapeOf, say);
  if (field.has("segments") && !(kind.fused && areSegments(field.get("segments"), size.out))) {
    say("R-042", "its segments do not describe its outputs");
  }
  if (field.has("initial")) {
    const initial = integerOf(field.get("initial"));
    const rank = shapeOf("A")?.[target.kind === "experts" ? 1 : 0];
    if (!kind.mutable || !(initial >= 1 && initial < rank)) say("R-043", "its initial ranks are not some of its ranks");
  }
}

/** The shapes that the factors of a kind have, for the ranks that the first axes of `A` say. */
function factorShapes({ kind, groups }, size, shapeOf) {
  const { out, in: inputs, experts, kernel } = size;
  const ones = kernel.map(() => 1);
  const rank = (role) => shapeOf(role)?.[0];
  switch (kind) {
    case "linear":
    case "embedding":
      return { A: [rank("A"), inputs], B: [out, rank("A")] };
    case "conv":
      return { A: [rank("A"), groups * inputs, ...kernel], B: [out, rank("A") / groups, ...ones] };
    case "experts":
      return { A: [experts, shapeOf("A")[1], inputs], B: [experts, out, shapeOf("A")[1]] };
    case "loha":
      return {
        A1: [rank("A1"), inputs, ...kernel],
        B1: [out, rank("A1")],
        A2: [rank("A2"), inputs, ...kernel],
        B2: [out, rank("A2")],
      };
    case "lokr": {
      const [out1, in1] = [rank("C1") ?? rank("B1"), shapeOf("C1")?.[1] ?? shapeOf("A1")?.[1]];
      const [out2, in2] = [out / out1, inputs / in1];
      return {
        C1: [out1, in1],
        A1: [rank("A1"), in1],
        B1: [out1, rank("A1")],
        C2: [out2, in2, ...kernel],
        A2: [rank("A2"), in2, ...kernel],
        B2: [out2, rank("A2")],
      };
    }
    default:
      return {};
  }
}

function judgeFactors(target, size, shapeOf, say) {
  for (const [role, shape] of Object.entries(factorShapes(target, size, shapeOf))) {
    const actual = shapeOf(role);
    if (actual !== undefined && !sameList(actual, shape)) say("R-029", `${role} has the shape (${actual.join(", ")})`);
  }
}

function judgeValues(target, shapeOf, say) {
  const { kind, shape } = target;
  const delta = kind === "sparse" ? shapeOf("index") : shape;
  for (const role of ["delta", "value"]) {
    const actual = shapeOf(role);
    if (actual === undefined) continue;
    if (kind === "tokens") {
      const width = shape === undefined ? actual[1] : shape[1];
      if (target.rows.length > 0 && !sameList(actual, [target.rows.length, width])) {
        say("R-031", "its value has not the shape (number of rows, out)");
      }
    } else if (!sameList(actual, role === "delta" ? delta : shape) || (kind === "sparse" && actual.length !== 1)) {
      say("R-031", `its ${role} has the shape (${actual.join(", ")})`);
    }
  }
}

/** */
function judgeRows({ kind, shape }, field, say) {
  const tokens = kind === "tokens";
  const length = integerOf(field.get("length"));
  const first = shape?.[0];
  const lengthIsSound = tokens && shape !== undefined && length > first && length <= LONGEST_AXIS;
  if (field.has("length") && !lengthIsSound) say("R-044", "its length is not above its first axis");
  if (!tokens) {
    if (field.has("rows")) say("R-033", "rows where no rows are replaced");
    return;
  }
  const below = (field.has("length") ? length : first) ?? Infinity;
  const rows = integers(field.get("rows"), 0);
  const ascending = rows?.every((row, index) => (index === 0 || rows[index - 1] < row) && row < below);
  if (!ascending || rows.length === 0) return say("R-033", "its rows are no ascending list of rows that there are");
  if (lengthIsSound && rows.filter((row) => row >= first).length !== length - first) {
    say("R-044", "not all rows that it adds are among its rows");
  }
}

/** @param {unknown} value @param {string[]} names @returns {boolean} whether it is an object without other members */
const hasOnly = (value, names) => isObject(value) && [...value.keys()].every((name) => names.includes(name));

/** @param {unknown} segments @param {number} out @returns {boolean} whether R-042 holds */
function areSegments(segments, out) {
  if (!hasOnly(segments, ["parts", "interleave"])) return false;
  const parts = segments.get("parts");
  if (!Array.isArray(parts) || !parts.every((part) => hasOnly(part, ["name", "length", "rope"]))) return false;
  const names = parts.map((part) => part.get("name"));
  const lengths = parts.map((part) => integerOf(part.get("length")));
  const blocks = segments.has("interleave") ? integerOf(segments.get("interleave")) : 1;
  return (
    blocks >= 1 &&
    names.every((name) => isString(name) && name !== "") &&
    new Set(names).size === names.length &&
    lengths.every((length) => length >= 1 && length % blocks === 0) &&
    lengths.reduce((sum, length) => sum + length, 0) === out &&
    parts.every((part, index) => !part.has("rope") || isRope(part.get("rope"), lengths[index]))
  );
}

/** Without `rotary`, all of a head is rotated, which is then even itself. */
function isRope(rope, length) {
  if (!hasOnly(rope, ["head", "order", "rotary"])) return false;
  const head = integerOf(rope.get("head"));
  const rotary = rope.has("rotary") ? integerOf(rope.get("rotary")) : head;
  return (
    head >= 1 &&
    length % head === 0 &&
    (rope.get("order") === "halves" || rope.get("order") === "pairs") &&
    rotary >= 2 &&
    rotary % 2 === 0 &&
    rotary <= head
  );
}
