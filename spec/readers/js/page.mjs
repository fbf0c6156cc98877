/** The page: takes a file, has it examined, and shows the summary. Strings of the file only ever become text. */
import { PROBE_COLUMNS, TARGET_COLUMNS, shown } from "./summary.mjs";

const place = (id) => document.getElementById(id);
const drop = place("drop");
const input = place("file");
const result = place("result");

result.replaceChildren(); // what says that the page has not started

/** @param {string} tag @param {string} [text] @param {string} [style] class name of the page's own */
function element(tag, text = "", style = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (style !== "") made.className = style;
  return made;
}

/** @param {string} heading @param {...Node} content */
function section(heading, ...content) {
  const made = element("section");
  made.append(element("h2", heading), ...content);
  return made;
}

/**
 * A table, which scrolls where it is too wide for the page.
 *
 * @param {string[]} columns
 * @param {string[][]} rows
 * @param {{style?: string, numeric?: number}} [options] columns from `numeric` on are numbers
 */
function table(columns, rows, { style: kind = "", numeric = columns.length } = {}) {
  const style = (column) => (column >= numeric ? "number" : "");
  const made = element("table", "", kind);
  const head = made.createTHead().insertRow();
  columns.forEach((name, column) => {
    const cell = element("th", name, style(column));
    cell.scope = "col";
    head.append(cell);
  });
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((text, column) => line.append(element("td", text, style(column))));
  }
  const scroller = element("div", "", "scroll");
  scroller.tabIndex = 0;
  scroller.append(made);
  return scroller;
}

function facts(rows) {
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
  return list;
}

/** @param {string} name of the file @param {import("./summary.mjs").Summary} summary */
function show(name, summary) {
  const { sound, code, findings, targets, probe, hidden } = summary;
  const verdict = element("p", "", sound ? "verdict sound" : "verdict broken");
  const count = new Set(findings.map(({ rule }) => rule)).size;
  const said = sound ? "a sound adapter" : `refused: ${code}, ${count} ${count === 1 ? "rule" : "rules"} broken`;
  verdict.append(element("strong", shown(name)), ` — ${said}`);
  const parts = [verdict];
  if (summary.facts.length > 0) parts.push(section("Adapter", facts(summary.facts)));
  if (!sound) {
    const rows = findings.map(({ rule, place: where, message }) => [rule, where, message]);
    parts.push(section("Rules broken", table(["rule", "where", "what"], rows)));
  }
  if (targets.length > 0) {
    const heading = sound ? "Targets" : "Targets whose fields can be read";
    parts.push(section(heading, table(TARGET_COLUMNS, targets, { style: "wide" })));
  }
  if (probe.length > 0) {
    const what = "Two adapters whose numbers agree make the same change, whatever their factors and names are.";
    parts.push(section("Probe certificate", element("p", what), table(PROBE_COLUMNS, probe, { style: "wide", numeric: 2 })));
  }
  if (hidden > 0) parts.push(element("p", `${hidden} more rows are not shown.`));
  result.replaceChildren(...parts);
}

function fail(name, message) {
  result.replaceChildren(element("p", `${shown(name)} — ${shown(message)}`, "verdict broken"));
}

let worker;

/** Examines a file; one that is still being examined is given up. @param {File} file */
async function examine(file) {
  worker?.terminate();
  const mine = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
  worker = mine;
  result.replaceChildren(element("p", `Reading ${shown(file.name)} …`, "verdict"));
  mine.addEventListener("message", ({ data }) => {
    if (data.error === undefined) show(file.name, data.summary);
    else fail(file.name, data.error);
    mine.terminate();
  });
  mine.addEventListener("error", () => fail(file.name, "the page cannot start its worker; serve this folder over HTTP"));
  try {
    const bytes = await file.arrayBuffer();
    if (worker === mine) mine.postMessage(bytes, [bytes]);
  } catch (error) {
    fail(file.name, String(error.message));
  }
}

input.addEventListener("change", () => {
  if (input.files.length > 0) examine(input.files[0]);
});
for (const [name, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", over);
  });
}
drop.addEventListener("drop", ({ dataTransfer }) => {
  if (dataTransfer.files.length > 0) examine(dataTransfer.files[0]);
});
