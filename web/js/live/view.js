// What a node shows of its run: the estimate with its views, score, push and CFG of CLIP guidance; the loss of a training; the weight
// over the steps of whatever has a curve.
import { make, put } from "../layers/dom.js";
import { chart, svg } from "./chart.js";
import { lastScore, smoothed, tooStrong } from "./state.js";
import { words } from "./strings.js";

const [BLUE, ORANGE, GREEN, PALE] = ["#4a9eda", "#e8743b", "#2fb58a", "#4a9eda55"];
const CSS = `
.gl-live { width:100%; box-sizing:border-box; font-size:12px; color:var(--input-text,#ddd); }
.gl-live .gl-sheet { display:flex; flex-direction:column; gap:4px; padding:6px; border-radius:8px; border:1px solid var(--border-color,#4e4e4e); background:var(--comfy-input-bg,#222); }
.gl-live svg { display:block; width:100%; height:auto; }
.gl-live text { font-size:10px; fill:var(--input-text,#ddd); opacity:.8; }
.gl-live .gl-grid { stroke:var(--border-color,#4e4e4e); stroke-width:.6; }
.gl-live .gl-line { fill:none; stroke-width:1.8; stroke-linejoin:round; }
.gl-live .gl-now { display:flex; gap:8px; align-items:flex-start; }
.gl-live .gl-estimate { position:relative; flex:0 0 44%; max-width:200px; line-height:0; }
.gl-live .gl-estimate img { width:100%; border-radius:4px; image-rendering:pixelated; }
.gl-live .gl-estimate svg { position:absolute; inset:0; height:100%; }
.gl-live .gl-facts { flex:1 1 0; min-width:0; display:flex; flex-direction:column; gap:3px; }
.gl-live .gl-dim { opacity:.8; font-size:11px; }
.gl-live .gl-warn { border-left:3px solid #e69f00; padding:3px 7px; background:color-mix(in srgb, #e69f00 14%, transparent); border-radius:4px; }
.gl-live .gl-key { display:inline-flex; align-items:center; gap:4px; margin-right:8px; }
.gl-live .gl-key i { width:12px; height:3px; border-radius:2px; display:inline-block; }
`;

function addStyle() {
  if (document.getElementById("guidance-lab-live-style")) return;
  document.head.append(make("style", { id: "guidance-lab-live-style", textContent: CSS }));
}

const percent = (share) => (share === null ? null : 100 * share);

export class LiveView {
  constructor(locale) {
    addStyle();
    this.labels = () => words(locale());
    this.sheet = make("div", { className: "gl-sheet" });
    this.element = make("div", { className: "gl-live guidance-lab-live" }, this.sheet);
  }

  show(state) {
    const parts = [
      ...(state.clip ? this.clip(state.clip) : []),
      ...(state.training ? this.training(state.training) : []),
      ...(state.weights ? [this.weights(state.weights)] : []),
    ];
    this.sheet.replaceChildren(...parts);
  }

  clip({ steps, points, picture, views }) {
    const labels = this.labels();
    const over = (value, colour, kind) => ({ values: points.map((one) => [one[0] + 1, value(one)]), colour, kind });
    const facts = make("div", { className: "gl-facts" });
    const score = lastScore(points);
    const [index, , push, cfg] = points.at(-1) ?? [0, null, null, null];
    facts.append(
      make("b", {}, labels.step({ step: index + 1, steps })),
      make("span", {}, score === null ? "" : `${labels.score} ${Number(score.toPrecision(4))}`),
      make("span", {}, cfg === null ? labels.alone : cfg > 0 && push !== null ? labels.calm({ share: push / cfg }) : ""),
      ...(views ? [make("span", { className: "gl-dim" }, views.whole ? labels.whole : labels.crops)] : []),
    );
    const strong = tooStrong(points);
    const range = { from: 1, to: steps };
    return [
      make("div", { className: "gl-now" }, ...(picture ? [this.estimate(picture, views)] : []), facts),
      ...(strong ? [make("div", { className: "gl-warn" }, labels.strong(strong))] : []),
      chart({ title: labels.score, series: [over((one) => one[1], GREEN)], fromZero: false, ...range }),
      chart({
        title: labels.push,
        series: [over((one) => percent(one[3]), BLUE), over((one) => percent(one[2]), ORANGE)],
        label: (tick) => `${tick} %`,
        ...range,
      }),
      make("div", { className: "gl-dim" }, this.key(labels.pushName, ORANGE), this.key("CFG", BLUE)),
    ];
  }

  key(name, colour) {
    return make("span", { className: "gl-key" }, make("i", { style: { background: colour } }), name);
  }

  estimate(picture, views) {
    const image = make("img", { src: picture, alt: this.labels().estimate, draggable: false });
    const box = ([left, top, width, height], colour) =>
      svg("rect", { x: left, y: top, width, height, fill: "none", stroke: colour, "stroke-width": 0.012 });
    const all = views?.whole ? [box([0.006, 0.006, 0.988, 0.988], "#fff")] : [];
    const frame = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    frame.append(...all, ...(views?.boxes ?? []).map((one) => box(one, ORANGE)));
    return make("div", { className: "gl-estimate" }, image, frame);
  }

  training({ last, points, words: norm, speed }) {
    const labels = this.labels();
    const steps = points.map(([step]) => step);
    const losses = points.map(([, loss]) => loss);
    const mean = smoothed(losses);
    const range = { from: steps[0] ?? 1, to: last };
    return [
      make("b", {}, labels.training({ step: steps.at(-1) ?? 0, last, loss: mean.at(-1) ?? 0, speed })),
      chart({
        title: labels.loss,
        series: [
          { values: steps.map((step, i) => [step, losses[i]]), colour: PALE, kind: "dots" },
          { values: steps.map((step, i) => [step, mean[i]]), colour: BLUE },
        ],
        height: 130,
        ...range,
      }),
      chart({
        title: labels.norm,
        series: [
          { values: [[range.from, norm], [range.to, norm]], colour: "#999", kind: "dashed" },
          { values: points.map(([step, , size]) => [step, size]), colour: GREEN },
        ],
        height: 76,
        ...range,
      }),
    ];
  }

  weights({ weights, neutral }) {
    return chart({
      title: this.labels().weights,
      series: [
        { values: [[1, neutral], [weights.length, neutral]], colour: "#999", kind: "dashed" },
        { values: weights.map((weight, i) => [i + 1, weight]), colour: ORANGE },
        { values: weights.map((weight, i) => [i + 1, weight]), colour: ORANGE, kind: "dots" },
      ],
      from: 1,
      to: weights.length,
      height: 90,
    });
  }
}

// A line of text that a node showed in its last run.
export class RememberedText {
  constructor(locale) {
    this.labels = () => words(locale());
    this.says = make("div", { style: { "white-space": "pre-wrap" } });
    this.sheet = make("div", { className: "gl-sheet" }, make("div", { className: "gl-dim" }), this.says);
    this.element = make("div", { className: "gl-live guidance-lab-said" }, this.sheet);
    addStyle();
  }

  show(text) {
    put(this.sheet.firstChild, "textContent", this.labels().text);
    put(this.says, "textContent", text);
  }
}
