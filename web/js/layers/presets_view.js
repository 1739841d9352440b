// Buttons for whole groups of layers.
import { make, put } from "./dom.js";
import { assign, coarseToFine } from "./paint.js";
import { colour } from "./style.js";
import { innermost, presets } from "./table.js";

// The buttons that give the chosen chip a group of layers at once.
export class PresetsView {
  constructor(state, labels) {
    this.state = state;
    this.labels = labels;
    this.element = make("div", { className: "gl-row gl-presets" });
  }

  update() {
    const { table, chip, letters, rows } = this.state;
    const number = this.state.chips().indexOf(chip);
    this.element.style.display = number < 0 ? "none" : "";
    this.element.style.setProperty("--gl-colour", number < 0 ? "" : colour(number));
    this.build(table);
    put(
      this.tag,
      "textContent",
      letters ? (rows[chip]?.text || "?").slice(0, 1).toUpperCase() : this.state.isSet ? "A" : String(number + 1),
    );
  }

  build(table) {
    if (table === this.table && this.built === this.labels()) return;
    [this.table, this.built] = [table, this.labels()];
    const labels = this.labels();
    const give = (layers) => {
      const { state } = this;
      state.commitRows(assign(state.rows, state.chip, layers, state.table));
    };
    this.tag = make("span", { className: "gl-tag gl-small" });
    const button = (text, hint, onclick) => make("button", { type: "button", title: hint, onclick }, text);
    const inner = make("input", {
      type: "range",
      min: 1,
      max: table.layers.length,
      value: String(Math.min(3, table.layers.length)),
      ariaLabel: labels.inner,
    });
    const count = make("span", { className: "gl-dim" }, inner.value);
    inner.oninput = () => {
      count.textContent = inner.value;
      give(innermost(inner.valueAsNumber, table));
    };
    this.element.replaceChildren(
      make("span", { className: "gl-dim" }, this.state.isSet ? labels.take : labels.paint),
      this.tag,
      make("span", { className: "gl-dim" }, this.state.isSet ? labels.of_ : labels.to_),
      ...presets(table).map(([word, layers]) => button(labels.words[word], labels.wordHints[word], () => give(layers))),
      make("label", { className: "gl-row" }, make("span", { className: "gl-dim" }, labels.inner), inner, count),
      this.state.isSet
        ? ""
        : button(labels.coarseToFine, labels.coarseHint, () =>
            this.state.commitRows(coarseToFine(this.state.rows, this.state.table)),
          ),
    );
  }
}
