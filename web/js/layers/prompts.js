// The text of a per-layer prompt as rows, and back. Text and picture are two views of one value: a row keeps what was typed,
// and is written anew only in the part that was changed in the picture. Same syntax and sentences as xti/prompts.py.
import { BLANKS, SyntaxProblem, asciiDigits, nameOf, select, strip } from "./table.js";

const BREAK = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/; // where Python's splitlines begins a new line
const HEAD = new RegExp(
  `^([^@]*?)(?:@[${BLANKS}]*([^@${BLANKS}]+))?(?:[${BLANKS}]+x[${BLANKS}]*([^${BLANKS}]+))?[${BLANKS}]*$`,
);
const NUMBER = /^-?(\p{Nd}+\.?\p{Nd}*|\.\p{Nd}+)$/u;

function number(text, what) {
  if (!NUMBER.test(text)) throw new SyntaxProblem(`The ${what} "${text}" is not a number.`);
  const value = Number(asciiDigits(text));
  if (!Number.isFinite(value)) throw new SyntaxProblem(`The ${what} is too large a number.`);
  return value;
}

function readWindow(text) {
  const dash = text.indexOf("-");
  if (dash < 0) throw new SyntaxProblem(`The window "@${text}" is not START-END, as in @0-0.4.`);
  const start = number(text.slice(0, dash), "window"),
    end = number(text.slice(dash + 1), "window");
  if (!(start >= 0 && start < end && end <= 1)) {
    throw new SyntaxProblem(`The window "@${text}" must run forwards between 0 and 1.`);
  }
  return [start, end];
}

function readLine(raw, table) {
  const colon = raw.indexOf(":");
  if (colon < 0) {
    throw new SyntaxProblem(`"${strip(raw)}" has no colon; write LAYERS: PROMPT, as in "middle: a green lizard".`);
  }
  const head = raw.slice(0, colon);
  const match = HEAD.exec(head);
  if (!match) throw new SyntaxProblem(`"${strip(head)}" is not LAYERS [@START-END] [xSTRENGTH].`);
  const [start, end] = match[2] === undefined ? [0, 1] : readWindow(match[2]);
  const strength = match[3] === undefined ? 1 : number(match[3], "strength");
  return { layers: select(match[1], table), head, text: strip(raw.slice(colon + 1)), start, end, strength };
}

// One line → a row. kind is "line" (layers, text, start, end, strength), "note" (a comment or a blank) or "bad" (error).
export function readRow(raw, table) {
  const bare = strip(raw);
  if (!bare || bare.startsWith("#")) return { kind: "note", raw };
  try {
    return { kind: "line", raw, ...readLine(raw, table) };
  } catch (problem) {
    if (!(problem instanceof SyntaxProblem)) throw problem;
    return { kind: "bad", raw, error: problem.message };
  }
}

// A row is `clash` when an earlier row has the same layer at the same time.
function findClashes(rows, table) {
  rows.forEach((row, i) => {
    if (row.kind !== "line") return;
    delete row.error;
    for (let j = 0; j < i; j += 1) {
      const other = rows[j];
      if (other.kind !== "line" || other.error || row.start >= other.end || other.start >= row.end) continue;
      const shared = row.layers.find((layer) => other.layers.includes(layer));
      if (shared === undefined) continue;
      row.error = `layer ${table.layers[shared].name} already has a prompt in line ${j + 1}.`;
      return;
    }
  });
  return rows;
}

export function parse(text, table) {
  const lines = text.split(BREAK);
  if (lines.at(-1) === "") lines.pop(); // a break at the end begins no line
  return findClashes(
    lines.map((line) => readRow(line, table)),
    table,
  );
}

export const serialize = (rows) => rows.map((row) => row.raw).join("\n");

// "Line 2: ..." as the node would say it, or null: the first row that keeps the text from running.
export function firstError(rows) {
  const i = rows.findIndex((row) => row.error);
  return i < 0 ? null : `Line ${i + 1}: ${rows[i].error}`;
}

// A number as the syntax reads it, which knows no exponent: 1e-7 → "0.0000001".
export function plainNumber(value) {
  const text = String(value);
  if (!text.includes("e")) return text;
  return Math.abs(value) < 1 ? value.toFixed(20).replace(/0+$/, "") : String(BigInt(value));
}

function headOf(row, table) {
  const time = row.start === 0 && row.end === 1 ? "" : ` @${plainNumber(row.start)}-${plainNumber(row.end)}`;
  return nameOf(row.layers, table) + time + (row.strength === 1 ? "" : ` x${plainNumber(row.strength)}`);
}

// A prompt is one line of text; a line break in it would begin another row.
export const oneLine = (text) => text.split(BREAK).join(" ");

// A row of kind "line" with `change` made ({layers, text, start, end, strength}); the part that is not changed stays as typed.
export function rewrite(row, change, table) {
  const next = { ...row, ...change };
  if ("text" in change) next.text = oneLine(change.text);
  const headChanged = ["layers", "start", "end", "strength"].some((key) => key in change);
  const tail = "text" in change ? ` ${next.text}` : row.raw.slice(row.raw.indexOf(":") + 1);
  next.head = headChanged ? headOf(next, table) : row.head;
  next.raw = `${next.head}:${tail === " " ? "" : tail}`;
  next.text = strip(next.text);
  return next;
}

export function newRow(layers, text, table) {
  const row = { kind: "line", raw: "", head: "", layers, text: "", start: 0, end: 1, strength: 1 };
  return rewrite(row, { layers, text }, table);
}

export const check = (rows, table) => findClashes(rows, table);
