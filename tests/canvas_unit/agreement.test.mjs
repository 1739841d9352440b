// The editor's parser says what the node's parser says: the same rows, or the same sentence. The texts and what Python makes of them
// are written by tests/unit/test_layer_editor_model.py.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { firstError, parse } from "../../web/js/layers/prompts.js";
import { SD1, nameOf, presets, select } from "../../web/js/layers/table.js";

const path = process.env.GUIDANCE_LAB_LAYER_TEXTS;
const skip = path ? false : "run by pytest, which writes the texts";
const read = () => JSON.parse(readFileSync(path, "utf8"));

test("each text gives the rows, or the sentence, that the node gives", { skip }, () => {
  const { tables, texts } = read();
  for (const { table, text, error, prompts } of texts) {
    const rows = parse(text, tables[table]);
    const told = `${table}: ${JSON.stringify(text)}`;
    assert.equal(firstError(rows), error, told);
    if (error) continue;
    const lines = rows.flatMap((row, i) =>
      row.kind === "line" ? [[row.layers, row.text, row.strength, row.start, row.end, i + 1]] : [],
    );
    assert.deepEqual(lines, prompts, told);
  }
});

test("the built-in table of SD1 is the node's", { skip }, () => {
  const { architecture, layers, inside_out } = read().tables.sd1;
  assert.deepEqual({ architecture, layers, inside_out }, SD1);
});

test("presets and names are read by the node as they are by the editor", { skip }, () => {
  for (const table of Object.values(read().tables)) {
    for (const [word, layers] of presets(table))
      assert.deepEqual(
        select(word, table),
        [...layers].sort((a, b) => a - b),
      );
    for (let first = 0; first < table.layers.length; first += 1)
      assert.deepEqual(select(nameOf([first], table), table), [first]);
  }
});
