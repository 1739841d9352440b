// What a person does in the picture, as functions from rows to rows. Rows are `prompts.parse`; nothing here knows the DOM.
// A chip is the number of a row of kind "line"; BASE is the chip of the base prompt, which takes layers away from all others.
import { check, newRow, parse, rewrite, serialize } from "./prompts.js";
import { indices, innermost, isFlat } from "./table.js";

export const BASE = -1;

const overlaps = (a, b) => a.start < b.end && b.start < a.end;
const sorted = (set) => [...set].sort((a, b) => a - b);

// A row that lost its last layer is not a line any more: it becomes a note, so that its text is not lost.
export const PARKED = "# (no layer) ";

function without(row, taken, table) {
  const layers = row.layers.filter((layer) => !taken.includes(layer));
  if (layers.length === row.layers.length) return row;
  return layers.length ? rewrite(row, { layers }, table) : park(row);
}

const park = (row) => ({ kind: "note", raw: PARKED + row.text, parked: true });

// The text of a parked row, null for any other row.
export const parkedText = (row) =>
  row.kind === "note" && row.raw.startsWith(PARKED) ? row.raw.slice(PARKED.length) : null;

// Gives these layers to a chip, and takes them from the chips that had them at the same time.
export function paint(rows, chip, layers, table) {
  const own = rows[chip];
  if (chip !== BASE && own?.kind !== "line" && (own === undefined || parkedText(own) === null)) return rows;
  const painted =
    chip === BASE
      ? null
      : own.kind === "line"
        ? rewrite(own, { layers: sorted(new Set([...own.layers, ...layers])) }, table)
        : newRow(sorted(new Set(layers)), parkedText(own), table);
  const next = rows.map((row, i) => {
    if (i === chip) return painted;
    if (row.kind !== "line" || (painted && !overlaps(row, painted))) return row;
    return without(row, layers, table);
  });
  return check(next, table);
}

// Takes these layers from one chip, or from all (BASE): they show the base prompt again.
export function erase(rows, chip, layers, table) {
  return check(
    rows.map((row, i) => (row.kind === "line" && (chip === BASE || i === chip) ? without(row, layers, table) : row)),
    table,
  );
}

// Gives a chip exactly these layers (a preset).
export function assign(rows, chip, layers, table) {
  const row = rows[chip];
  if (row?.kind !== "line") return paint(rows, chip, layers, table);
  const next = rows.map((other, i) => (i === chip ? rewrite(row, { layers: sorted(new Set(layers)) }, table) : other));
  return paint(next, chip, layers, table);
}

// Another text, strength or window of a chip; a wider window takes the layers it now shares with others from them.
export function change(rows, chip, what, table) {
  const row = rows[chip];
  if (row.kind !== "line") {
    return parkedText(row) === null || !("text" in what)
      ? rows
      : rows.map((other, i) => (i === chip ? { ...row, raw: PARKED + what.text } : other));
  }
  const next = rows.map((other, i) => (i === chip ? rewrite(row, what, table) : other));
  return "start" in what || "end" in what ? paint(next, chip, row.layers, table) : check(next, table);
}

export function remove(rows, index, table) {
  return check(
    rows.filter((_, i) => i !== index),
    table,
  );
}

// A new chip on layers that show the base prompt at all times; a parked one where there are none.
export function add(rows, text, table, after = rows.length - 1) {
  const taken = new Set(rows.flatMap((row) => (row.kind === "line" ? row.layers : [])));
  const free = indices(table).filter((layer) => !taken.has(layer));
  const inner = table.inside_out.find((layer) => !taken.has(layer));
  const row =
    free.length === indices(table).length
      ? newRow(isFlat(table) ? [inner] : innermost(3, table), text, table)
      : free.length
        ? newRow([inner], text, table)
        : { kind: "note", raw: PARKED + text, parked: true };
  return [check([...rows.slice(0, after + 1), row, ...rows.slice(after + 1)], table), after + 1];
}

// Layers from the innermost outwards, in as many equal parts as there are chips: the first chip gets the coarsest.
export function coarseToFine(rows, table) {
  const chips = rows.flatMap((row, i) => (row.kind === "line" || parkedText(row) !== null ? [i] : []));
  const order = table.inside_out;
  let next = rows;
  chips.forEach((chip, i) => {
    const part = order.slice(
      Math.round((i * order.length) / chips.length),
      Math.round(((i + 1) * order.length) / chips.length),
    );
    if (part.length) next = assign(next, chip, part, table);
  });
  return next;
}

// What each layer shows over the sampling: [{start, end, chip}] without the stretches of the base prompt.
export function cells(rows, table) {
  return indices(table).map((layer) =>
    rows
      .flatMap((row, chip) =>
        row.kind === "line" && !row.error && row.layers.includes(layer)
          ? [{ start: row.start, end: row.end, chip }]
          : [],
      )
      .sort((a, b) => a.start - b.start),
  );
}

export { parse, serialize };
