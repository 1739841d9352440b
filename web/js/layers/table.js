// The cross-attention layers of a model, and how a line names some of them. The same rules and the same sentences as
// xti/layers.py and xti/selection.py, so that a typo is explained before anything runs; a test holds the two together.
//
// A table is {architecture, layers: [{name, direction, resolution, place}], inside_out: [indices]}, as the route of the pack
// sends it; `place` is ComfyUI's word for the kind of block.

const DOWN = ["IN01:64", "IN02:64", "IN04:32", "IN05:32", "IN07:16", "IN08:16"];
const UP = ["OUT03:16", "OUT04:16", "OUT05:16", "OUT06:32", "OUT07:32", "OUT08:32", "OUT09:64", "OUT10:64", "OUT11:64"];

const PLACES = { down: "input", mid: "middle", up: "output" };

function layer(text, direction) {
  const [name, resolution] = text.split(":");
  return { name, direction, resolution: Number(resolution), place: PLACES[direction] };
}

// What is drawn until the server or a run has told more.
export const SD1 = {
  architecture: "sd1",
  layers: [
    ...DOWN.map((place) => layer(place, "down")),
    layer("MID:8", "mid"),
    ...UP.map((place) => layer(place, "up")),
  ],
  inside_out: [6, 5, 7, 4, 8, 9, 3, 10, 2, 11, 12, 1, 13, 0, 14, 15],
};

export class SyntaxProblem extends Error {}

// What Python's str.strip and \s take for a blank; JavaScript's own trim differs in a few characters.
export const BLANKS = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const BLANK = `[${BLANKS}]`;
const ENDS = new RegExp(`^${BLANK}+|${BLANK}+$`, "g");
export const strip = (text) => text.replace(ENDS, "");

// Python's \d and int() read the digits of every script, full-width ones too.
export function asciiDigits(text) {
  return text.replace(/\p{Nd}/gu, (digit) => {
    let value = 0;
    const point = digit.codePointAt(0);
    while (value < 9 && /^\p{Nd}$/u.test(String.fromCodePoint(point - value - 1))) value += 1;
    // Blocks of digits that touch each other (mathematical ones) start at a multiple of ten from the first.
    return point >= 0x1d7ce && point <= 0x1d7ff ? String((point - 0x1d7ce) % 10) : String(value);
  });
}

export const indices = (table) => table.layers.map((_, index) => index);
export const isFlat = (table) => table.layers[0].direction === "flat";

function coarse(table) {
  const down = table.layers.filter((one) => one.direction === "down").map((one) => one.resolution);
  if (!down.length) {
    throw new SyntaxProblem(
      `${table.architecture} works at one resolution and has no coarse or fine layers: name layers by number, 0-${table.layers.length - 1}.`,
    );
  }
  const border = Math.min(...down);
  return indices(table).filter((index) => table.layers[index].resolution <= border);
}

// The layers a word stands for, or null where it is not such a word.
function byWord(word, table) {
  if (word === "all") return indices(table);
  if (["coarse", "middle", "inner"].includes(word)) return coarse(table);
  if (["fine", "outer"].includes(word)) {
    const inner = coarse(table);
    return indices(table).filter((index) => !inner.includes(index));
  }
  if (word === "double" || word === "single") {
    return indices(table).filter((index) => table.layers[index].place === `${word}_block`);
  }
  if (word === "down" || word === "up") return indices(table).filter((index) => table.layers[index].direction === word);
  const inner = new RegExp(`^innermost${BLANK}+(\\p{Nd}+)$`, "u").exec(word);
  if (!inner) return null;
  const count = Number(asciiDigits(inner[1]));
  if (count > table.layers.length) {
    throw new SyntaxProblem(
      `Cannot take the innermost ${count} layers: ${table.architecture} has ${table.layers.length}.`,
    );
  }
  return table.inside_out.slice(0, count);
}

function byName(word, part, table) {
  const last = table.layers.length - 1;
  if (/^\p{Nd}+$/u.test(word)) {
    const number = Number(asciiDigits(word));
    if (number > last)
      throw new SyntaxProblem(`There is no layer ${word}: ${table.architecture} has layers 0-${last}.`);
    return [number];
  }
  const named = indices(table).filter((index) => {
    const name = table.layers[index].name.toLowerCase();
    return name === word || name.startsWith(word + ".");
  });
  if (!named.length || (isFlat(table) && named.length > 1)) {
    throw new SyntaxProblem(
      `"${part}" names no layer of ${table.architecture}: use 0-${last}, a name from ${table.layers[0].name} to ` +
        `${table.layers[last].name}, all, middle, outer, down, up or innermost K.`,
    );
  }
  return named;
}

function selectPart(part, table) {
  const word = part.toLowerCase();
  const known = byWord(word, table);
  if (known) return known;
  const dash = word.indexOf("-");
  const begin = byName(strip(dash < 0 ? word : word.slice(0, dash)), part, table);
  if (dash < 0) return begin;
  const end = byName(strip(word.slice(dash + 1)), part, table);
  const first = begin[0],
    last = end[end.length - 1];
  if (first > last) throw new SyntaxProblem(`The layer range "${part}" runs backwards.`);
  return indices(table).slice(first, last + 1);
}

// "0-3, MID" → [0, 1, 2, 3, 6]. Throws SyntaxProblem with the sentence that the node would give.
export function select(text, table) {
  const parts = text.split(",").map(strip);
  if (!parts.every(Boolean)) {
    throw new SyntaxProblem(
      parts.some(Boolean) ? `"${strip(text)}" names no layer between two commas.` : "No layer is named.",
    );
  }
  const chosen = new Set();
  for (const part of parts) {
    const picked = selectPart(part, table);
    if (!picked.length) {
      throw new SyntaxProblem(
        `"${part}" names no layer of this model (${table.architecture}): it has none of that kind.`,
      );
    }
    picked.forEach((index) => chosen.add(index));
  }
  return [...chosen].sort((a, b) => a - b);
}

const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);
const sorted = (list) => [...list].sort((a, b) => a - b);

// The words that stand for groups in this table, with their layers, as the preset buttons and `nameOf` use them.
export function presets(table) {
  const words = isFlat(table) ? ["all", "double", "single"] : ["middle", "outer", "down", "up", "all"];
  const groups = words.map((word) => [word, byWord(word, table)]).filter(([, layers]) => layers.length);
  // Where all blocks are of one kind, the word for that kind says nothing that "all" does not say.
  return groups.filter(([word, layers]) => word === "all" || layers.length < table.layers.length);
}

export const innermost = (count, table) => sorted(table.inside_out.slice(0, count));

// The shortest text that `select` reads as these layers (ascending): a word, else names and ranges.
export function nameOf(layers, table) {
  const preset = presets(table).find(([, group]) => same(sorted(group), layers));
  if (preset) return preset[0];
  if (layers.length > 2 && !isFlat(table) && same(innermost(layers.length, table), layers))
    return `innermost ${layers.length}`;
  const parts = [];
  for (let i = 0; i < layers.length;) {
    let end = i;
    while (layers[end + 1] === layers[end] + 1) end += 1;
    const first = label(layers[i], table),
      last = label(layers[end], table);
    parts.push(i === end ? first : end === i + 1 && !isFlat(table) ? `${first}, ${last}` : `${first}-${last}`);
    i = end + 1;
  }
  return parts.join(", ");
}

// How a line calls one layer: by name on a UNet, by number where all names share one stem.
export const label = (index, table) => (isFlat(table) ? String(index) : table.layers[index].name);
