// The record of a sampling run (the JSON of Guidance Trace) as curves, and what is remarkable in it. Nothing here knows the DOM.
export const CFG = "CFG";
const AGAINST = -0.1; // a cosine below this is a pull against CFG

export function termNames(record) {
  return [...new Set(record.evaluations.flatMap((one) => one.terms.map((term) => term.name)))];
}

// One entry for each evaluation: {size in %, cosine, weight}, or null where the term did not act.
export function series(record, name) {
  return record.evaluations.map((one) => {
    const term = one.terms.find((each) => each.name === name);
    return term
      ? { size: term.size === null ? null : 100 * term.size, cosine: term.cosine, weight: term.weight }
      : null;
  });
}

// Stretches of evaluations [first, last] in which a term pushed at all: its window.
export function windows(record, name) {
  const found = [];
  series(record, name).forEach((point, i) => {
    if (!point?.size) return;
    if (found.at(-1)?.[1] === i - 1) found.at(-1)[1] = i;
    else found.push([i, i]);
  });
  return found;
}

// Round numbers from 0 to the first at or above `highest`, at most `most` + 1 of them.
export function niceTicks(highest, most = 4) {
  if (!(highest > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(highest / most));
  const spacing = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step * most >= highest * (1 - 1e-9));
  return Array.from({ length: Math.ceil((highest / spacing) * (1 - 1e-9)) + 1 }, (_, i) =>
    Number((i * spacing).toPrecision(12)),
  );
}

// Powers of ten around all positive sizes, for a logarithmic axis.
export function decades(sizes) {
  const positive = sizes.filter((size) => size > 0);
  if (!positive.length) return [0.1, 1];
  const low = Math.floor(Math.log10(Math.max(Math.min(...positive), 1e-3))),
    high = Math.ceil(Math.log10(Math.max(...positive)));
  return Array.from({ length: Math.max(high - low, 1) + 1 }, (_, i) => 10 ** (low + i));
}

const stepOf = (record, index) => record.evaluations[index].step + 1;

// What is worth saying: {kind: "none" | "against" | "larger" | "peak", name, step, percent}; the words are the view's.
export function remarkable(record) {
  const names = termNames(record);
  if (!names.length) return { kind: "none" };
  const others = names.filter((name) => name !== CFG);
  for (const name of others) {
    const points = series(record, name)
      .map((point, i) => [point, i])
      .filter(([point]) => typeof point?.cosine === "number" && point.size);
    const calm = points.findLastIndex(([point]) => point.cosine >= AGAINST);
    if (points.length - calm - 1 >= 2) return { kind: "against", name, step: stepOf(record, points[calm + 1][1]) };
  }
  const cfg = series(record, CFG);
  for (const name of others) {
    const points = series(record, name);
    const above = points.flatMap((point, i) => (point?.size && cfg[i] && point.size > (cfg[i].size ?? 0) ? [i] : []));
    if (above.length) return { kind: "larger", name, step: stepOf(record, above[0]), count: above.length };
  }
  const peaks = names.flatMap((name) => series(record, name).map((point, i) => ({ name, size: point?.size ?? 0, i })));
  const peak = peaks.reduce((best, one) => (one.size > best.size ? one : best));
  return { kind: "peak", name: peak.name, step: stepOf(record, peak.i), percent: peak.size };
}
