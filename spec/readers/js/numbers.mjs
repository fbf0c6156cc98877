/**
 * Element types: their sizes, and their values as binary64 numbers and back.
 *
 * Encoding rounds once, from binary64 to the element type, to nearest with ties to even (P-015): going through binary32
 * would round twice.
 */

/**
 * @typedef {object} Minifloat
 * @property {number} mantissa  bits of the fraction
 * @property {number} bias      of the exponent
 * @property {number} nan       a code without sign that is NaN
 * @property {number} overflow  the code without sign of the first number that does not fit
 */

/** @type {Record<string, Minifloat>} */
const MINIFLOATS = {
  F16: { mantissa: 10, bias: 15, nan: 0x7e00, overflow: 0x7c00 },
  BF16: { mantissa: 7, bias: 127, nan: 0x7fc0, overflow: 0x7f80 },
  F8_E5M2: { mantissa: 2, bias: 15, nan: 0x7e, overflow: 0x7c },
  F8_E4M3: { mantissa: 3, bias: 7, nan: 0x7f, overflow: 0x7f }, // no infinities; what is too large becomes NaN
};

const INTEGERS = {
  I64: { size: 8, get: (view, at) => Number(view.getBigInt64(at, true)) },
  I32: { size: 4, get: (view, at) => view.getInt32(at, true) },
  I16: { size: 2, get: (view, at) => view.getInt16(at, true) },
  I8: { size: 1, get: (view, at) => view.getInt8(at) },
  U64: { size: 8, get: (view, at) => Number(view.getBigUint64(at, true)) },
  U32: { size: 4, get: (view, at) => view.getUint32(at, true) },
  U16: { size: 2, get: (view, at) => view.getUint16(at, true) },
  U8: { size: 1, get: (view, at) => view.getUint8(at) },
  BOOL: { size: 1, get: (view, at) => (view.getUint8(at) === 0 ? 0 : 1) },
};

const FLOAT_SIZES = { F64: 8, F32: 4, F16: 2, BF16: 2, F8_E4M3: 1, F8_E5M2: 1 };

/** Element types by name: bytes of one element. @type {Map<string, number>} */
export const ELEMENT_SIZES = new Map([
  ...Object.entries(FLOAT_SIZES),
  ...Object.entries(INTEGERS).map(([name, { size }]) => [name, size]),
]);

/** @param {string} dtype @returns {boolean} */
export const isFloat = (dtype) => Object.hasOwn(FLOAT_SIZES, dtype);

const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** @param {number} code @param {Minifloat} format @param {number} width bits @returns {number} */
function decodeMinifloat(code, { mantissa, bias, nan, overflow }, width) {
  const sign = code >> (width - 1) ? -1 : 1;
  const magnitude = code & ((1 << (width - 1)) - 1);
  if (magnitude >= overflow) return magnitude === overflow && overflow !== nan ? sign * Infinity : NaN;
  const exponent = magnitude >> mantissa;
  const fraction = magnitude & ((1 << mantissa) - 1);
  if (exponent === 0) return sign * fraction * 2 ** (1 - bias - mantissa);
  return sign * (fraction + (1 << mantissa)) * 2 ** (exponent - bias - mantissa);
}

const scratch = new DataView(new ArrayBuffer(8));

/** @param {number} value finite, above 0 @returns {number} floor of its binary logarithm; -1023 if it is subnormal */
function exponentOf(value) {
  scratch.setFloat64(0, value);
  return ((scratch.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/** @param {number} value @param {Minifloat} format @param {number} width bits @returns {number} */
function encodeMinifloat(value, { mantissa, bias, nan, overflow }, width) {
  const sign = value < 0 || Object.is(value, -0) ? 1 << (width - 1) : 0;
  if (Number.isNaN(value)) return nan;
  const magnitude = Math.abs(value);
  if (magnitude === 0) return sign;
  if (magnitude === Infinity) return sign | overflow;
  const lowest = 1 - bias;
  const exponent = Math.max(exponentOf(magnitude), lowest);
  // Exact: a power of two, and no quotient reaches 2^(mantissa + 1). Split, because 2^(mantissa - exponent) has limits.
  const units = magnitude * 2 ** -exponent * 2 ** mantissa;
  let rounded = Math.floor(units);
  const rest = units - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2 === 1)) rounded += 1;
  // A normal number has its hidden bit in `rounded`, hence one exponent less; a carry moves to the exponent by itself.
  const code = (exponent - lowest) * 2 ** mantissa + rounded;
  return sign | Math.min(code, overflow);
}

/**
 * Values of elements; those of 64-bit integers are rounded to binary64.
 *
 * @param {string} dtype
 * @param {Uint8Array} bytes
 * @returns {Float64Array}
 */
export function decode(dtype, bytes) {
  const size = ELEMENT_SIZES.get(dtype);
  const view = viewOf(bytes);
  const values = new Float64Array(bytes.length / size);
  const format = MINIFLOATS[dtype];
  const get = format
    ? (at) => decodeMinifloat(size === 1 ? view.getUint8(at) : view.getUint16(at, true), format, 8 * size)
    : dtype === "F64"
      ? (at) => view.getFloat64(at, true)
      : dtype === "F32"
        ? (at) => view.getFloat32(at, true)
        : (at) => INTEGERS[dtype].get(view, at);
  for (let i = 0; i < values.length; i += 1) values[i] = get(i * size);
  return values;
}

/**
 * Elements of a floating-point type, each rounded once.
 *
 * @param {string} dtype
 * @param {Float64Array} values
 * @returns {Uint8Array}
 */
export function encode(dtype, values) {
  const size = FLOAT_SIZES[dtype];
  const bytes = new Uint8Array(values.length * size);
  const view = viewOf(bytes);
  const format = MINIFLOATS[dtype];
  for (let i = 0; i < values.length; i += 1) {
    if (dtype === "F64") view.setFloat64(8 * i, values[i], true);
    else if (dtype === "F32") view.setFloat32(4 * i, values[i], true);
    else if (size === 2) view.setUint16(2 * i, encodeMinifloat(values[i], format, 16), true);
    else view.setUint8(i, encodeMinifloat(values[i], format, 8));
  }
  return bytes;
}

/**
 * Floating-point elements of at most 32 bits as binary32, bit by bit, so that a NaN keeps its payload: what an engine
 * does to a NaN that passes through a number is its own business.
 *
 * @param {string} dtype `F32`, or a shorter floating-point type
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
export function widen(dtype, bytes) {
  if (dtype === "F32") return bytes;
  const size = FLOAT_SIZES[dtype];
  const source = viewOf(bytes);
  const wide = new Uint8Array((bytes.length / size) * 4);
  const view = viewOf(wide);
  const format = MINIFLOATS[dtype];
  for (let i = 0; 4 * i < wide.length; i += 1) {
    const code = size === 1 ? source.getUint8(i) : source.getUint16(2 * i, true);
    const value = decodeMinifloat(code, format, 8 * size);
    if (Number.isNaN(value)) {
      const sign = code >> (8 * size - 1);
      const fraction = code & ((1 << format.mantissa) - 1);
      view.setUint32(4 * i, ((sign << 31) | 0x7f800000 | (fraction << (23 - format.mantissa))) >>> 0, true);
    } else view.setFloat32(4 * i, value, true);
  }
  return wide;
}
