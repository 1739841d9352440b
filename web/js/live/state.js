// What a page knows of the nodes that tell about their runs: the messages of one node folded into one state. Nothing here knows the DOM.

// A state is {run, clip?, training?, weights?}; a message of another run begins anew.
export function fold(state, message) {
  const { kind, run } = message;
  const before = state?.run === run ? state : { run };
  if (!FOLDS[kind]) return before;
  return { ...before, [kind]: FOLDS[kind](before[kind] ?? {}, message) };
}

const FOLDS = {
  clip: (clip, { steps, points, picture, views }) => ({
    ...clip,
    steps,
    points: [...(clip.points ?? []), ...points],
    ...(picture ? { picture, views } : {}),
  }),
  training: (training, { last, points, words, speed }) => ({
    last,
    words,
    speed,
    points: thinned([...(training.points ?? []), ...points]),
  }),
  weights: (_, { weights, neutral }) => ({ weights, neutral }),
};

const MOST_POINTS = 2000;

// A long training is kept with every second of its older steps, so that it stays small enough to be kept over a reload.
function thinned(points) {
  if (points.length <= MOST_POINTS) return points;
  const half = points.length / 2;
  return points.filter((_, i) => i >= half || i % 2 === 0);
}

// The evaluations in which the push was larger than CFG's: {count, step, times} of the first and the largest; null where none was.
export function tooStrong(points) {
  const above = points.filter(([, , push, cfg]) => push !== null && cfg !== null && push > cfg);
  if (!above.length) return null;
  return { count: above.length, step: above[0][0] + 1, times: Math.max(...above.map(([, , push, cfg]) => push / cfg)) };
}

// The mean of each value and those before it, over a tenth of what there is: the loss of one step is mostly luck.
export function smoothed(values) {
  const width = Math.max(1, Math.floor(values.length / 10));
  let total = 0;
  return values.map((value, i) => {
    total += value - (i >= width ? values[i - width] : 0);
    return total / Math.min(i + 1, width);
  });
}

export const lastScore = (points) => points.findLast(([, score]) => score !== null)?.[1] ?? null;
