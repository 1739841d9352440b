// The layers of the model as a U (UNets) or as columns read downwards (transformers); cells are painted with the chosen chip.
import { make } from "./dom.js";
import { BASE, cells, erase, paint, parkedText } from "./paint.js";
import { colour } from "./style.js";
import { isFlat, label } from "./table.js";

const ROWS = 10; // of the columns of a transformer
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class MapView {
  constructor(state, labels) {
    this.state = state;
    this.labels = labels;
    this.element = make("div", { className: "gl-map", aria: { role: "grid" } });
    this.last = 0; // the cell a shift-click paints from
    this.element.addEventListener("pointerdown", (event) => this.press(event));
    this.element.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.element.addEventListener(end, () => (this.stroke = null));
    }
    this.element.addEventListener("keydown", (event) => this.key(event));
  }

  // Lays the cells out anew where the table is another one, then colours them.
  update() {
    const { table } = this.state;
    if (table !== this.table) {
      this.table = table;
      this.cells = table.layers.map((_, index) => this.cell(index));
      this.element.className = "gl-map" + (isFlat(table) ? " gl-column" : "");
      this.element.style.gridTemplateRows = isFlat(table) ? `repeat(${Math.min(ROWS, table.layers.length)}, auto)` : "";
      this.element.replaceChildren(...(isFlat(table) ? this.cells : this.levels()));
      this.last = Math.min(this.last, table.layers.length - 1);
    }
    this.element.ariaLabel = this.labels().gridLabel;
    const shown = cells(this.state.rows, table);
    this.cells.forEach((cell, index) => this.colourCell(cell, index, shown[index]));
  }

  cell(index) {
    const name = label(index, this.table);
    const dot = name.indexOf(".");
    return make(
      "div",
      { className: "gl-cell", tabIndex: index ? -1 : 0, data: { layer: index }, aria: { role: "gridcell" } },
      make("span", {}, dot > 0 ? name.slice(dot + 1) : name),
      make("b"),
    );
  }

  // One row for each resolution: the way down on the left, the way up on the right, the middle at the bottom.
  levels() {
    const { layers } = this.table;
    const sizes = [...new Set(layers.map((layer) => layer.resolution))].sort((a, b) => b - a);
    const level = (size, depth, left, right) =>
      make(
        "div",
        { className: "gl-level", aria: { role: "row" }, style: { padding: `0 ${depth * 7}%` } },
        make("div", { className: "gl-side" }, ...left),
        make("span", { className: "gl-size" }, make("span", {}, `${size} × ${size}`)),
        make("div", { className: "gl-side gl-up" }, ...right),
      );
    const at = (size, direction) =>
      this.grouped(
        layers.flatMap((layer, i) => (layer.resolution === size && layer.direction === direction ? [i] : [])),
      );
    const both = sizes.filter((size) => at(size, "down").length + at(size, "up").length);
    const rows = both.map((size, depth) => level(size, depth, at(size, "down"), at(size, "up")));
    const middle = layers.findIndex((layer) => layer.direction === "mid");
    if (middle < 0) return rows;
    const size = layers[middle].resolution;
    return [
      ...rows,
      make(
        "div",
        { className: "gl-level gl-bottom", aria: { role: "row" } },
        ...at(size, "mid"),
        make("span", { className: "gl-dim" }, `${size} × ${size}`),
      ),
    ];
  }

  // The single blocks of one transformer stand together under its name.
  grouped(layers) {
    const groups = new Map();
    for (const index of layers) {
      const [name, block] = this.table.layers[index].name.split(".");
      groups.set(name, [...(groups.get(name) ?? []), [index, block]]);
    }
    return [...groups].map(([name, members]) => {
      if (members[0][1] === undefined) return this.cells[members[0][0]];
      return make(
        "div",
        { className: "gl-group" },
        make("span", { className: "gl-dim" }, name),
        ...members.map(([index]) => this.cells[index]),
      );
    });
  }

  colourCell(cell, index, stretches) {
    const { state, table } = this;
    const chips = state.chips();
    const texts = stretches.map(({ chip, start, end }) => {
      const when = start === 0 && end === 1 ? "" : ` (${Math.round(start * 100)}–${Math.round(end * 100)} %)`;
      return state.rows[chip].text + when;
    });
    const { name, resolution } = table.layers[index];
    const where = resolution ? `${name} · ${resolution} × ${resolution}` : name;
    cell.title = `${where} · ${this.labels().layer} ${index}\n${this.content(texts)}`;
    cell.ariaLabel = cell.title.replaceAll("\n", ": ");
    // A chip that holds all the time fills its cell; chips that hold a part of it stand as bars along the sampling at its foot.
    const tint = ({ chip }, most) => {
      const strength = Math.max(0, Math.min(1, state.rows[chip].strength));
      return `color-mix(in srgb, ${colour(chips.indexOf(chip))} ${Math.round(most * (0.3 + 0.7 * strength))}%, var(--comfy-menu-bg))`;
    };
    const always = stretches.length === 1 && stretches[0].end - stretches[0].start === 1;
    const bars = always
      ? []
      : stretches.map((one) => {
          const [from, to] = [100 * one.start, 100 * one.end];
          const clear = "transparent";
          return `linear-gradient(to right, ${clear} ${from}%, ${tint(one, 100)} ${from}% ${to}%, ${clear} ${to}%) 0 100% / 100% 6px no-repeat`;
        });
    const ground = stretches.length ? tint(stretches[0], always ? 100 : 30) : "";
    cell.style.background = [...bars, ground && `linear-gradient(${ground}, ${ground})`].filter(Boolean).join(", ");
    cell.classList.toggle("gl-painted", stretches.length > 0);
    cell.classList.toggle("gl-always", always);
    const own = stretches.some(({ chip }) => chip === state.chip);
    cell.classList.toggle("gl-own", own);
    cell.ariaSelected = String(own);
    cell.lastChild.textContent = stretches.map(({ chip }) => this.mark(chip, chips)).join("");
  }

  content(texts) {
    const { isSet } = this.state,
      labels = this.labels();
    if (isSet) return texts.length ? labels.geometry : labels.appearance;
    return texts.join("\n") || labels.baseCell;
  }

  mark(chip, chips) {
    const { isSet, letters, rows } = this.state;
    if (isSet) return "A";
    return letters ? (rows[chip].text || "?").slice(0, 1).toUpperCase() : String(chips.indexOf(chip) + 1);
  }

  layerAt(event) {
    const cell = document.elementFromPoint(event.clientX, event.clientY)?.closest(".gl-cell");
    return cell && this.element.contains(cell) ? Number(cell.dataset.layer) : null;
  }

  has(layer) {
    const { chip, rows } = this.state;
    return chip === BASE
      ? !rows.some((row) => row.kind === "line" && row.layers.includes(layer))
      : (rows[chip]?.layers ?? []).includes(layer);
  }

  press(event) {
    if (event.button !== 0 || this.state.locked) return;
    const layer = this.layerAt(event);
    if (layer === null) return;
    this.cells[layer].focus({ preventScroll: true });
    // A stroke that begins on a cell of the chip itself takes cells away from it.
    this.stroke = { remove: this.has(layer) && !event.shiftKey };
    this.element.setPointerCapture(event.pointerId);
    const range = event.shiftKey ? [Math.min(layer, this.last), Math.max(layer, this.last)] : [layer, layer];
    this.apply(
      Array.from({ length: range[1] - range[0] + 1 }, (_, i) => range[0] + i),
      this.stroke.remove,
    );
    this.last = layer;
  }

  drag(event) {
    if (!this.stroke) return;
    const layer = this.layerAt(event);
    if (layer === null || layer === this.last) return;
    this.last = layer;
    this.apply([layer], this.stroke.remove);
  }

  apply(layers, remove) {
    const { chip, rows, table } = this.state;
    const own = rows[chip];
    const usable = chip === BASE || own?.kind === "line" || (own && parkedText(own) !== null);
    if (!usable) return;
    if (this.state.isSet && chip === BASE) return this.state.commitRows(erase(rows, 0, layers, table));
    this.state.commitRows(remove ? erase(rows, chip, layers, table) : paint(rows, chip, layers, table));
  }

  key(event) {
    const layer = Number(event.target.closest?.(".gl-cell")?.dataset.layer ?? NaN);
    if (Number.isNaN(layer)) return;
    const { state } = this;
    if (event.key in STEPS) this.move(layer, ...STEPS[event.key], event.shiftKey);
    else if (event.key === " " && !state.locked) this.apply([layer], this.has(layer));
    else if ((event.key === "Delete" || event.key === "Backspace") && !state.locked) {
      state.commitRows(erase(state.rows, BASE, [layer], state.table));
    } else return;
    event.preventDefault();
    event.stopPropagation(); // Delete would delete the node, Space would pan the canvas
  }

  // To the nearest cell in that direction on the screen; with shift the cell there is painted too.
  move(layer, dx, dy, painting) {
    const centre = (cell) => {
      const box = cell.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2];
    };
    const [x, y] = centre(this.cells[layer]);
    let best = null,
      least = Infinity;
    this.cells.forEach((cell, index) => {
      const [cx, cy] = centre(cell);
      const along = (cx - x) * dx + (cy - y) * dy,
        across = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (along > 2 && along + 3 * across < least) [best, least] = [index, along + 3 * across];
    });
    if (best === null) return;
    this.cells[layer].tabIndex = -1;
    this.cells[best].tabIndex = 0;
    this.cells[best].focus({ preventScroll: true });
    this.last = best;
    if (painting && !this.state.locked) this.apply([best], false);
  }
}
