// The trace of a run as an interactive picture: sizes above, cosines below, one curve for each term; the run before as a ghost.
import { make, put } from "../layers/dom.js";
import { svg } from "../live/chart.js";
import { CFG, decades, niceTicks, remarkable, series, termNames, windows } from "./record.js";
import { percent, words } from "./strings.js";

const [WIDTH, LEFT, RIGHT] = [460, 44, 452];
const SIZES = [16, 150],
  COSINES = [186, 252],
  HEIGHT = 276;
const COLOURS = ["#4a9eda", "#e8743b", "#2fb58a", "#d78fb9", "#e0b030", "#a99bff", "#b08a60"];
const CSS = `
.gl-trace { width:100%; box-sizing:border-box; font-size:12px; color:var(--input-text,#ddd); }
.gl-trace .gl-sheet { padding:6px; border-radius:8px; border:1px solid var(--border-color,#4e4e4e); background:var(--comfy-input-bg,#222); }
.gl-trace svg { display:block; width:100%; height:auto; touch-action:none; }
.gl-trace text { font-size:10px; fill:var(--descrip-text,#999); }
.gl-trace .gl-grid { stroke:var(--border-color,#4e4e4e); stroke-width:.6; }
.gl-trace .gl-curve { fill:none; stroke-width:1.8; }
.gl-trace .gl-ghost { fill:none; stroke-width:1.2; stroke-dasharray:3 3; opacity:.55; }
.gl-trace .gl-says { font-weight:600; margin-bottom:4px; }
.gl-trace .gl-terms { display:flex; flex-wrap:wrap; gap:4px; margin:4px 0; }
.gl-trace button { font:inherit; font-size:11px; color:inherit; cursor:pointer; border:1px solid var(--border-color,#4e4e4e); border-radius:5px; background:var(--comfy-menu-bg,#333); padding:1px 7px; }
.gl-trace button[aria-pressed=false] { opacity:.45; text-decoration:line-through; }
.gl-trace .gl-read { min-height:2.7em; color:var(--descrip-text,#999); font-size:11px; }
`;

export class TracePlot {
  constructor(locale) {
    if (!document.getElementById("guidance-lab-trace-style")) {
      document.head.append(make("style", { id: "guidance-lab-trace-style", textContent: CSS }));
    }
    this.labels = () => words(locale());
    this.hidden = new Set();
    this.log = false;
    this.says = make("div", { className: "gl-says" });
    this.terms = make("div", { className: "gl-terms" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    this.read = make("div", { className: "gl-read" });
    this.sheet = make("div", { className: "gl-sheet" }, this.says, this.picture, this.terms, this.read);
    this.element = make("div", { className: "gl-trace guidance-lab-trace" }, this.sheet);
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.point(null));
    this.draw();
  }

  // record: the JSON of Guidance Trace. The run that was shown becomes the ghost.
  show(record) {
    [this.before, this.record] = [this.record, record];
    this.draw();
  }

  draw() {
    const labels = this.labels();
    this.picture.style.display = this.record?.evaluations.length ? "" : "none";
    if (!this.record?.evaluations.length) {
      put(this.says, "textContent", labels.waiting);
      return;
    }
    const found = remarkable(this.record);
    put(this.says, "textContent", labels.say[found.kind](found));
    const names = termNames(this.record);
    this.colours = Object.fromEntries(names.map((name, i) => [name, COLOURS[i % COLOURS.length]]));
    const shown = names.filter((name) => !this.hidden.has(name));
    this.terms.replaceChildren(...names.map((name) => this.termButton(name)), this.scaleButton());
    this.cursor = svg("line", { y1: SIZES[0], y2: COSINES[1], class: "gl-grid", visibility: "hidden" });
    this.picture.replaceChildren(
      ...this.shades(shown),
      ...this.sizes(shown),
      ...this.cosines(shown),
      ...this.axis(),
      this.cursor,
    );
    this.point(null);
  }

  termButton(name) {
    const flip = () => {
      if (!this.hidden.delete(name)) this.hidden.add(name);
      this.draw();
    };
    const button = make(
      "button",
      { type: "button", onclick: flip, aria: { pressed: String(!this.hidden.has(name)) } },
      name,
    );
    button.style.borderColor = this.colours[name];
    button.style.color = this.colours[name];
    return button;
  }

  scaleButton() {
    const flip = () => {
      this.log = !this.log;
      this.draw();
    };
    return make(
      "button",
      { type: "button", className: "gl-scale", onclick: flip },
      this.log ? this.labels().linear : this.labels().log,
    );
  }

  x(index, record = this.record) {
    return LEFT + ((index + 0.5) * (RIGHT - LEFT)) / record.evaluations.length;
  }

  // Where a term other than CFG acted, as a faint band of its colour.
  shades(names) {
    const half = (RIGHT - LEFT) / this.record.evaluations.length / 2;
    return names
      .filter((name) => name !== CFG)
      .flatMap((name) =>
        windows(this.record, name).map(([first, last]) =>
          svg("rect", {
            x: this.x(first) - half,
            width: this.x(last) - this.x(first) + 2 * half,
            y: SIZES[0],
            height: SIZES[1] - SIZES[0],
            fill: this.colours[name],
            opacity: 0.09,
          }),
        ),
      );
  }

  panel([top, bottom], title, ticks, yOf, label) {
    const lines = ticks.flatMap((tick) => [
      svg("line", { x1: LEFT, x2: RIGHT, y1: yOf(tick), y2: yOf(tick), class: "gl-grid" }),
      svg("text", { x: LEFT - 4, y: yOf(tick) + 3, "text-anchor": "end" }, label(tick)),
    ]);
    return [svg("text", { x: LEFT, y: top - 5 }, title), ...lines];
  }

  curves(names, value, yOf) {
    const path = (record, name) => {
      let pen = "M";
      return series(record, name)
        .map((point, i) => {
          const at = point && value(point);
          if (at === null || at === undefined || (this.log && value(point) <= 0 && value === sizeOf)) {
            pen = "M";
            return "";
          }
          const part = `${pen}${this.x(i, record).toFixed(1)} ${yOf(at).toFixed(1)}`;
          pen = "L";
          return part;
        })
        .join("");
    };
    const curve = (record, name, kind) =>
      svg("path", { d: path(record, name), class: kind, stroke: this.colours[name] });
    const dots = (name) =>
      series(this.record, name).flatMap((point, i) => {
        const at = point && value(point);
        if (at === null || at === undefined || (this.log && at <= 0 && value === sizeOf)) return [];
        return [svg("circle", { cx: this.x(i).toFixed(1), cy: yOf(at).toFixed(1), r: 2, fill: this.colours[name] })];
      });
    const ghosts = this.before?.evaluations.length ? names.map((name) => curve(this.before, name, "gl-ghost")) : [];
    return [...ghosts, ...names.flatMap((name) => [curve(this.record, name, "gl-curve"), ...dots(name)])];
  }

  sizes(names) {
    const all = [this.record, this.before]
      .filter((record) => record?.evaluations.length)
      .flatMap((record) => names.flatMap((name) => series(record, name).map((point) => point?.size ?? 0)));
    const [top, bottom] = SIZES;
    const ticks = this.log ? decades(all) : niceTicks(Math.max(0, ...all));
    const [low, high] = [ticks[0], ticks.at(-1)];
    const yOf = this.log
      ? (size) => bottom - ((bottom - top) * Math.log10(Math.max(size, low) / low)) / Math.log10(high / low)
      : (size) => bottom - ((bottom - top) * size) / high;
    const title = this.labels().size + (this.before ? ` · ${this.labels().before}` : "");
    return [...this.panel(SIZES, title, ticks, yOf, (tick) => percent(tick)), ...this.curves(names, sizeOf, yOf)];
  }

  // CFG has no cosine to itself.
  cosines(names) {
    const [top, bottom] = COSINES;
    const yOf = (cosine) => bottom - ((bottom - top) * (cosine + 1)) / 2;
    return [
      ...this.panel(COSINES, this.labels().cosine, [-1, 0, 1], yOf, String),
      ...this.curves(
        names.filter((name) => name !== CFG),
        (point) => point.cosine,
        yOf,
      ),
    ];
  }

  axis() {
    const { evaluations } = this.record;
    const every = Math.max(1, Math.ceil((36 * evaluations.length) / (RIGHT - LEFT)));
    return evaluations.flatMap((one, i) =>
      i % every
        ? []
        : [svg("text", { x: this.x(i), y: COSINES[1] + 14, "text-anchor": "middle" }, String(one.step + 1))],
    );
  }

  point(event) {
    const { evaluations } = this.record ?? {};
    if (!event || !evaluations?.length) {
      this.cursor?.setAttribute("visibility", "hidden");
      put(this.read, "textContent", this.record ? this.labels().hover : "");
      return;
    }
    const box = this.picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    const index = Math.max(
      0,
      Math.min(evaluations.length - 1, Math.floor(((at - LEFT) / (RIGHT - LEFT)) * evaluations.length)),
    );
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(index));
    this.cursor.setAttribute("visibility", "visible");
    put(this.read, "textContent", this.numbers(evaluations[index]));
  }

  numbers(one) {
    const labels = this.labels();
    const terms = one.terms.map(({ name, size, cosine, weight }) => {
      const more = [
        name !== CFG && cosine !== null ? `cos ${cosine.toFixed(2)}` : "",
        weight === null ? "" : `${labels.weight} ${Number(weight.toPrecision(3))}`,
      ];
      const said = more.filter(Boolean).join(", ");
      return `${name} ${size === null ? "–" : percent(100 * size)}${said && ` (${said})`}`;
    });
    const notes = one.notes.map((note) => `${note.name}: ${note.text}`);
    return [
      `${labels.step} ${one.step + 1}, ${labels.sigma} ${Number(one.sigma.toPrecision(3))}`,
      ...terms,
      ...notes,
    ].join(" · ");
  }
}

const sizeOf = (point) => point.size;
