// A small chart: lines over steps, from the first to the last, which are known before there are values.
import { niceTicks } from "../trace/record.js";

const [WIDTH, LEFT, RIGHT, TOP] = [300, 40, 296, 19];

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// series: [{values: [[x, y or null], ...], colour, kind?: "dots" | "dashed" | "steps"}]; from..to: the steps; fromZero: the axis begins at 0.
export function chart({ title, series, from, to, height = 96, fromZero = true, label = String }) {
  const bottom = height - 8;
  const all = series.flatMap(({ values }) => values.map(([, y]) => y).filter((y) => y !== null && Number.isFinite(y)));
  const ticks = axis(all, fromZero);
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (step) => LEFT + ((step - from) * (RIGHT - LEFT)) / Math.max(1, to - from);
  const y = (value) => bottom - ((bottom - TOP) * (value - low)) / (high - low);
  const lines = ticks.flatMap((tick) => [
    svg("line", { x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick), class: "gl-grid" }),
    svg("text", { x: LEFT - 4, y: y(tick) + 3, "text-anchor": "end" }, label(tick)),
  ]);
  const drawn = series.flatMap(({ values, colour, kind }) => {
    const known = values.filter(([, value]) => value !== null && Number.isFinite(value));
    if (kind === "dots" || known.length === 1)
      return known.map(([step, value]) => svg("circle", { cx: x(step), cy: y(value), r: 2, fill: colour }));
    const points = known.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const dashes = kind === "dashed" ? { "stroke-dasharray": "4 4" } : {};
    return [svg("polyline", { points, class: "gl-line", stroke: colour, ...dashes })];
  });
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": title },
    svg("text", { x: LEFT, y: 11 }, title),
    ...lines,
    ...drawn,
  );
}

function axis(values, fromZero) {
  if (!values.length) return [0, 1];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  if (fromZero && least >= 0) return niceTicks(most, 3);
  const span = most - least || Math.abs(most) || 1;
  const unit = niceTicks(span, 3)[1];
  const first = Math.floor(least / unit);
  const count = Math.max(1, Math.ceil(most / unit - 1e-9) - first);
  return Array.from({ length: count + 1 }, (_, i) => Number(((first + i) * unit).toPrecision(12)));
}
