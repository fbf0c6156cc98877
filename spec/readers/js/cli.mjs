#!/usr/bin/env node
/** The protocol of conformance.md: one request a line on standard input, one answer a line on standard output. */
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import * as loreg from "./loreg.mjs";
import { hex } from "./sha256.mjs";

const load = (path) => loreg.read(readFileSync(path));
const accept = (members) => ({ verdict: "accept", ...members });
/** Targets are free to be called `__proto__`, which is an own property of an object that is made like this. */
const object = (entries) => Object.fromEntries(entries);

const OPERATIONS = {
  hello: () => ({
    name: loreg.NAME,
    version: loreg.VERSION,
    format: loreg.FORMAT,
    classes: loreg.CLASSES,
    features: loreg.FEATURES,
  }),
  read: ({ file }) => {
    const adapter = load(file);
    const root = loreg.adapterRoot(adapter);
    return accept({ content: loreg.contentDigest(adapter), ...(root === undefined ? {} : { root }) });
  },
  validate: ({ file }) => ({
    rules: [...new Set(loreg.validate(readFileSync(file)).map(({ rule }) => rule))].sort(),
  }),
  write: ({ file }) => accept({ bytes: hex(loreg.write(load(file))) }),
  edit: ({ file, title }) => accept({ bytes: hex(loreg.write(loreg.withTitle(load(file), title))) }),
  merge: ({ adapter, base }) => {
    const { tensors, fingerprints } = loreg.merge(load(adapter), readFileSync(base));
    const shown = [...tensors].map(([name, { dtype, shape, bytes }]) => [name, { dtype, shape, data: hex(bytes) }]);
    return accept({ tensors: object(shown), fingerprints: object(fingerprints) });
  },
  probe: ({ file }) => {
    const shown = [...loreg.probe(load(file))].map(([name, components]) => [name, object(components)]);
    return accept({ targets: object(shown) });
  },
};

function answer(line) {
  try {
    const request = JSON.parse(line);
    if (!Object.hasOwn(OPERATIONS, request?.op)) return { error: "there is no such operation" };
    return OPERATIONS[request.op](request);
  } catch (error) {
    if (!(error instanceof loreg.AdapterError)) return { error: String(error.message).replaceAll("\n", " ") };
    console.error(error.message);
    return { verdict: "reject", code: error.code };
  }
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  if (line.trim() !== "") process.stdout.write(`${JSON.stringify(answer(line))}\n`);
}
