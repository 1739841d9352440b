// The curves of the trace plot and the sentence above them, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { decades, niceTicks, remarkable, series, termNames, windows } from "../../web/js/trace/record.js";

const term = (name, size, cosine = null, weight = null) => ({ name, size, cosine, weight });
const record = (...steps) => ({
  sigmas: [],
  evaluations: steps.map((terms, step) => ({ step, sigma: 10 - step, seconds: 1, terms, costs: [], notes: [] })),
});

test("curves have a gap where a term did not act, and its window is where it pushed", () => {
  const run = record(
    [term("CFG", 0.1)],
    [term("CFG", 0.2), term("CLIP", 0.05, 0.5, 1)],
    [term("CLIP", 0.04)],
    [term("CFG", 0.1), term("CLIP", 0)],
  );
  assert.deepEqual(termNames(run), ["CFG", "CLIP"]);
  assert.deepEqual(
    series(run, "CLIP").map((point) => point?.size),
    [undefined, 5, 4, 0],
  );
  assert.deepEqual(windows(run, "CLIP"), [[1, 2]]);
});

test("ticks are round and reach the highest value", () => {
  assert.deepEqual(niceTicks(37), [0, 10, 20, 30, 40]);
  assert.deepEqual(niceTicks(0), [0, 1]);
  assert.deepEqual(niceTicks(0.3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(
    decades([0, 0.03, 12]),
    [0.01, 0.1, 1, 10, 100].map((value) => 10 ** Math.round(Math.log10(value))),
  );
});

test("the sentence says what is most worth knowing", () => {
  assert.deepEqual(remarkable(record([], [])), { kind: "none" });
  const against = record(
    ...[0.4, 0.1, -0.3, -0.5].map((cosine) => [term("CFG", 0.1, 1, 5), term("CLIP", 0.02, cosine, 1)]),
  );
  assert.deepEqual(remarkable(against), { kind: "against", name: "CLIP", step: 3 });
  const larger = record([term("CFG", 0.1, 1), term("CLIP", 0.05, 0.2)], [term("CFG", 0.1, 1), term("CLIP", 0.2, 0.2)]);
  assert.deepEqual(remarkable(larger), { kind: "larger", name: "CLIP", step: 2, count: 1 });
  const calm = record([term("CFG", 0.1, 1)], [term("CFG", 0.3, 1)]);
  assert.deepEqual(remarkable(calm), { kind: "peak", name: "CFG", step: 2, percent: 30 });
  const once = record([term("CFG", 0.1, 1), term("CLIP", 0.05, -0.5)], [term("CFG", 0.1, 1), term("CLIP", 0.05, 0.5)]);
  assert.equal(remarkable(once).kind, "peak"); // a pull against CFG that ended is not said
});
