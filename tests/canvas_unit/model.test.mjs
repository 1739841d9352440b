// The model of the layer editor without a browser: parse, paint, serialise. Run by tests/unit/test_layer_editor_model.py, or
// `node --test tests/canvas_unit/`.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  BASE,
  PARKED,
  add,
  assign,
  cells,
  change,
  coarseToFine,
  erase,
  paint,
  parkedText,
  remove,
} from "../../web/js/layers/paint.js";
import { firstError, parse, serialize } from "../../web/js/layers/prompts.js";
import { SD1, innermost, nameOf, presets, select } from "../../web/js/layers/table.js";

const WAN = {
  architecture: "wan2.1",
  layers: Array.from({ length: 30 }, (_, i) => ({ name: `blocks.${i}`, direction: "flat", resolution: null })),
  inside_out: Array.from({ length: 30 }, (_, i) => i).sort(
    (a, b) => Math.abs(2 * a - 29) - Math.abs(2 * b - 29) || a - b,
  ),
};
const TEXT = "# object inside\nmiddle: a green lizard\n0-3, 10-15 @0-0.5 x0.8: a red: cube";
const rows = (text, table = SD1) => parse(text, table);

// Numbers that are the same on every machine (mulberry32).
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

test("a text is read line by line", () => {
  const read = rows(TEXT);
  assert.deepEqual(
    read.map((row) => row.kind),
    ["note", "line", "line"],
  );
  assert.deepEqual(read[1].layers, [4, 5, 6, 7, 8, 9]);
  assert.deepEqual([read[2].start, read[2].end, read[2].strength, read[2].text], [0, 0.5, 0.8, "a red: cube"]);
  assert.equal(firstError(read), null);
});

test("a typo stands in its own row, with the sentence, and the others stay", () => {
  const read = rows("midle: a\nMID: b\nmiddle: c");
  assert.equal(
    read[0].error,
    '"midle" names no layer of sd1: use 0-15, a name from IN01 to OUT11, all, middle, outer, down, up or innermost K.',
  );
  assert.equal(read[1].error, undefined);
  assert.equal(read[2].error, "layer MID already has a prompt in line 2.");
});

test("painting takes the layer from the chip that had it, and writes only the lines that changed", () => {
  const painted = paint(rows(TEXT), 2, [4], SD1);
  assert.equal(
    serialize(painted),
    "# object inside\nmiddle: a green lizard\n0-3, 10-15 @0-0.5 x0.8: a red: cube"
      .replace("middle", "IN08-OUT05")
      .replace("0-3, 10-15", "IN01-IN07, OUT06-OUT11"),
  );
  assert.equal(serialize(paint(rows(TEXT), 1, [6], SD1)).split("\n")[2], TEXT.split("\n")[2]);
});

test("a chip may have a layer at another time than a chip that has it too", () => {
  const painted = paint(rows("MID @0-0.5: a\nIN08 @0.5-1: b"), 1, [6], SD1);
  assert.equal(serialize(painted), "MID @0-0.5: a\nIN08, MID @0.5-1: b");
  assert.equal(firstError(painted), null);
  assert.deepEqual(cells(painted, SD1)[6], [
    { start: 0, end: 0.5, chip: 0 },
    { start: 0.5, end: 1, chip: 1 },
  ]);
});

test("a wider window takes the layers it now shares", () => {
  const wide = change(rows("MID @0-0.5: a\nIN08, MID @0.5-1: b"), 0, { end: 0.8 }, SD1);
  assert.equal(serialize(wide), "MID @0-0.8: a\nIN08 @0.5-1: b");
});

test("the base prompt takes a layer from every chip, and a chip without layers keeps its text", () => {
  const painted = paint(rows("MID: a\nIN08: b"), BASE, [6], SD1);
  assert.equal(serialize(painted), `${PARKED}a\nIN08: b`);
  assert.equal(parkedText(painted[0]), "a");
  assert.equal(serialize(paint(painted, 0, [6, 5], SD1)), `IN08, MID: a\n${PARKED}b`);
  assert.equal(serialize(erase(rows("IN08, MID: a"), 0, [5], SD1)), "MID: a");
});

test("presets, innermost and coarse to fine", () => {
  assert.equal(serialize(assign(rows("MID: a\nouter: b"), 0, select("down", SD1), SD1)), "down: a\nOUT06-OUT11: b");
  assert.deepEqual(innermost(3, SD1), [5, 6, 7]);
  const [two] = add(rows("all: a"), "b", SD1);
  assert.equal(serialize(coarseToFine(two, SD1)), "innermost 8: a\nIN01-IN04, OUT07-OUT11: b");
  const three = coarseToFine(rows("0: a\n1: b\n2: c", WAN), WAN);
  assert.equal(firstError(three), null);
  assert.equal(
    three.reduce((sum, row) => sum + row.layers.length, 0),
    30,
  );
  assert.deepEqual(
    presets(WAN).map(([word]) => word),
    ["all"],
  );
});

test("lines are added, removed and changed; a break in a prompt does not make a line", () => {
  const [more, chip] = add(rows("middle: a"), "b", SD1);
  assert.equal(chip, 1);
  assert.equal(firstError(more), null);
  assert.equal(serialize(remove(more, 0, SD1)).split("\n").length, 1);
  assert.equal(serialize(change(rows("middle: a"), 0, { text: "x\ny\u2028z" }, SD1)), "middle: x y z");
  assert.equal(serialize(change(rows("0-3 @0-0.5: a"), 0, { text: "b" }, SD1)), "0-3 @0-0.5: b");
  assert.equal(
    serialize(change(rows("0-3: a"), 0, { strength: 1e-7, start: 0.25 }, SD1)),
    "IN01-IN05 @0.25-1 x0.0000001: a",
  );
});

test("an empty prompt is the empty text, and stays a line", () => {
  const empty = change(rows("middle: a"), 0, { text: "" }, SD1);
  assert.equal(serialize(empty), "middle:");
  assert.equal(rows(serialize(empty))[0].text, "");
});

test("10,000 random tables: painted, written and read again, they are the same", () => {
  const next = random(20),
    pick = (n) => Math.floor(next() * n);
  for (let i = 0; i < 10_000; i += 1) {
    const table = i % 4 ? SD1 : WAN;
    let made = [];
    for (let n = pick(5); n >= 0; n -= 1)
      [made] = add(made, `prompt ${pick(99)}${next() < 0.2 ? ": (a:1.2)" : ""}`, table);
    for (let n = pick(12); n > 0; n -= 1) {
      const chip = pick(made.length),
        layers = Array.from({ length: 1 + pick(4) }, () => pick(table.layers.length));
      if (next() < 0.6) made = paint(made, chip, layers, table);
      else if (next() < 0.3) made = erase(made, BASE, layers, table);
      else if (made[chip].kind === "line" && next() < 0.5)
        made = change(made, chip, { strength: pick(41) / 20 }, table);
      else if (made[chip].kind === "line") {
        const start = pick(50) / 100;
        made = change(made, chip, { start, end: start + (1 + pick(50)) / 100 }, table);
      }
    }
    const again = parse(serialize(made), table);
    assert.equal(firstError(again), null, serialize(made));
    assert.equal(serialize(again), serialize(made));
    const plain = (list) =>
      list.map(({ kind, layers, text, start, end, strength }) => ({ kind, layers, text, start, end, strength }));
    assert.deepEqual(plain(again), plain(made), serialize(made));
  }
});

test("every set of layers has a name that is read as that set", () => {
  const next = random(7);
  for (let i = 0; i < 3000; i += 1) {
    const table = i % 3 ? SD1 : WAN;
    const layers = table.layers.map((_, index) => index).filter(() => next() < 0.4);
    if (layers.length) assert.deepEqual(select(nameOf(layers, table), table), layers);
  }
});
