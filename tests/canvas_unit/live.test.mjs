// What a page knows of running nodes, without a browser: messages folded into one state, and what is said of it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fold, lastScore, smoothed, tooStrong } from "../../web/js/live/state.js";

const clip = (run, points, more = {}) => ({ kind: "clip", run, steps: 4, points, ...more });

test("messages of one run add up, and another run begins anew", () => {
  let state = fold(undefined, clip("a", [[0, 0.1, 0.02, 0.1]], { picture: "data:1", views: { boxes: [], whole: true } }));
  state = fold(state, clip("a", [[1, 0.2, 0.03, 0.1]]));
  assert.deepEqual(
    state.clip.points.map(([step]) => step),
    [0, 1],
  );
  assert.equal(state.clip.picture, "data:1"); // the newest that there is
  state = fold(state, { kind: "weights", run: "a", weights: [2, 1], neutral: 1 });
  assert.ok(state.clip && state.weights);
  state = fold(state, clip("b", [[0, 0.3, 0.1, 0.1]]));
  assert.deepEqual([state.clip.points.length, state.clip.picture, state.weights], [1, undefined, undefined]);
  assert.deepEqual(fold(state, { kind: "of a later version", run: "b" }), state);
});

test("a push is too strong where it passes CFG's", () => {
  assert.equal(tooStrong([[0, 1, 0.1, 0.2], [1, 1, 0.2, null]]), null);
  const found = tooStrong([[0, 1, 0.1, 0.2], [1, 1, 0.3, 0.2], [2, null, 0.5, 0.2]]);
  assert.deepEqual([found.count, found.step, found.times], [2, 2, 2.5]);
  assert.equal(lastScore([[0, 0.5, 0, 0], [1, null, 0, 0]]), 0.5);
  assert.equal(lastScore([]), null);
});

test("a long training stays small, and its last half whole", () => {
  let state;
  for (let begin = 1; begin <= 9000; begin += 100) {
    const points = Array.from({ length: 100 }, (_, i) => [begin + i, 1 / (begin + i), 1]);
    state = fold(state, { kind: "training", run: "a", last: 9000, points, words: 0.4, speed: 3 });
  }
  const steps = state.training.points.map(([step]) => step);
  assert.ok(steps.length <= 2000 && steps.at(-1) === 9000);
  assert.deepEqual(
    steps,
    steps.toSorted((a, b) => a - b),
  );
});

test("smoothing is the mean over a tenth", () => {
  assert.deepEqual(smoothed([1, 2, 3]), [1, 2, 3]);
  const values = Array.from({ length: 20 }, (_, i) => i);
  assert.deepEqual(smoothed(values).slice(0, 4), [0, 0.5, 1.5, 2.5]);
});
