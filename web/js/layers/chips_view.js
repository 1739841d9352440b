// The prompts of the layer editor: one chip for each line, with its text, strength and part of the sampling.
import { make, put } from "./dom.js";
import { BASE, add, change, parkedText, remove } from "./paint.js";
import { readRow } from "./prompts.js";
import { colour } from "./style.js";
import { nameOf } from "./table.js";

const percent = (value) => Math.round(value * 100);

export class ChipsView {
  constructor(state, labels) {
    this.state = state;
    this.labels = labels;
    this.typing = null; // a row that is typed as raw text keeps that form until the field is left
    this.base = this.baseChip();
    this.list = make("div", {});
    this.element = make("div", { className: "gl-chips" }, this.base, this.list);
  }

  baseChip() {
    const choose = () => this.state.choose(BASE);
    const tag = make("button", { className: "gl-tag", type: "button", onclick: choose });
    this.baseName = make("span");
    return make(
      "div",
      { className: "gl-chip gl-basechip" },
      make("div", { className: "gl-row", onclick: choose }, tag, this.baseName),
    );
  }

  update() {
    const { state } = this;
    put(this.baseName, "textContent", state.isSet ? this.labels().appearance : this.labels().base);
    this.base.title = this.base.querySelector("button").ariaLabel = this.labels().baseHint;
    this.base.classList.toggle("gl-active", state.chip === BASE);
    const shape =
      (state.isSet ? [{}] : state.rows).map((row, i) => this.shapeOf(row, i)).join() +
      (state.letters ? "L" : "") +
      this.labels().base;
    if (shape !== this.shape) this.build(shape);
    this.parts.forEach((part) => part.update());
  }

  shapeOf(row, i) {
    if (this.state.isSet) return "set";
    if (this.typing === i || row.kind === "bad") return "raw";
    if (row.kind === "line" || parkedText(row) !== null) return "chip";
    return row.raw.trim() ? "comment" : "blank";
  }

  build(shape) {
    const focus = this.list.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    this.shape = shape;
    this.parts = (this.state.isSet ? [{}] : this.state.rows).map((row, i) => this[this.shapeOf(row, i)](i));
    this.list.replaceChildren(...this.parts.map((part) => part.element).filter(Boolean));
    if (focus) this.list.querySelector(`[data-focus="${focus}"]`)?.focus({ preventScroll: true });
  }

  blank() {
    return { element: null, update() {} };
  }

  // The one line of a set: its layers as text, which may hold a typo.
  set() {
    const { state } = this;
    const tag = make("button", { type: "button", className: "gl-tag", onclick: () => state.choose(0) }, "A");
    const input = make("input", {
      type: "text",
      className: "gl-grow",
      spellcheck: false,
      ariaLabel: this.labels().layers,
      oninput: () => state.commitText(input.value),
    });
    const error = make("div", { className: "gl-error" });
    const element = make(
      "div",
      { className: "gl-chip", style: { "--gl-colour": colour(0) } },
      make(
        "div",
        { className: "gl-row", onclick: () => state.choose(0) },
        tag,
        make("span", {}, this.labels().geometry),
        input,
      ),
      error,
    );
    const update = () => {
      element.classList.toggle("gl-active", state.chip === 0);
      put(input, "value", state.text);
      input.readOnly = Boolean(state.locked);
      input.classList.toggle("gl-wavy", Boolean(state.rows[0]?.error));
      put(error, "textContent", state.rows[0]?.error ?? "");
    };
    return { element, update };
  }

  comment(i) {
    const text = make("span", { className: "gl-grow gl-comment" });
    const element = make("div", { className: "gl-row" }, text, this.removeButton(i));
    return { element, update: () => put(text, "textContent", this.state.rows[i].raw) };
  }

  // A line that is not understood: its text as it is, underlined, with the sentence.
  raw(i) {
    const { state } = this;
    const input = make("input", {
      type: "text",
      className: "gl-grow",
      spellcheck: false,
      data: { focus: `raw${i}` },
      oninput: () => {
        this.typing = i;
        state.commitRows(state.rows.map((row, at) => (at === i ? readRow(input.value, state.table) : row)));
        state.setText(state.text); // another line may clash with it now
      },
      onblur: () => {
        this.typing = null;
        state.changed();
      },
    });
    const error = make("div", { className: "gl-error" });
    const tag = make(
      "span",
      {
        className: "gl-tag gl-row",
        style: { "--gl-colour": "var(--error-text,#ff6b6b)", "justify-content": "center" },
      },
      "!",
    );
    const element = make(
      "div",
      { className: "gl-chip" },
      make("div", { className: "gl-row" }, tag, input, this.removeButton(i)),
      error,
    );
    const update = () => {
      const row = state.rows[i];
      put(input, "value", row.raw);
      input.readOnly = Boolean(state.locked);
      input.classList.toggle("gl-wavy", Boolean(row.error));
      put(error, "textContent", row.error ?? "");
    };
    return { element, update };
  }

  removeButton(i) {
    const { state } = this;
    return make(
      "button",
      {
        type: "button",
        className: "gl-icon",
        title: this.labels().remove,
        ariaLabel: this.labels().remove,
        onclick: () => state.commitRows(remove(state.rows, i, state.table)),
      },
      "×",
    );
  }

  chip(i) {
    const { state } = this;
    const labels = this.labels();
    const apply = (what) => state.commitRows(change(state.rows, i, what, state.table));
    const tag = make("button", {
      type: "button",
      className: "gl-tag",
      onclick: () => state.choose(i),
      data: { focus: `tag${i}` },
      onkeydown: (event) => this.chipKey(event, i),
    });
    const text = state.letters ? this.letterField(i, apply) : this.textField(i, apply);
    const where = make("span", { className: "gl-where gl-dim" });
    const strength = this.strengthField(apply);
    const time = this.timeField(i, apply);
    const error = make("div", { className: "gl-error" });
    const detail = make("div", { className: "gl-row gl-detail" }, where, strength.element, time.element);
    const element = make(
      "div",
      {
        className: "gl-chip",
        onpointerdown: () => state.chip !== i && state.choose(i),
        onfocusin: () => state.chip !== i && state.choose(i),
      },
      make("div", { className: "gl-row" }, tag, text.element, this.removeButton(i)),
      detail,
      error,
    );
    const update = () => {
      const row = state.rows[i],
        number = state.chips().indexOf(i);
      const line = row.kind === "line";
      element.style.setProperty("--gl-colour", colour(number));
      element.classList.toggle("gl-active", state.chip === i);
      put(tag, "textContent", state.letters ? (row.text || "?").slice(0, 1).toUpperCase() : String(number + 1));
      tag.ariaLabel = `${labels.paint}: ${row.text ?? ""}`;
      text.update(line ? row.text : parkedText(row));
      text.element.classList.toggle("gl-wavy", Boolean(row.error));
      put(where, "textContent", line ? nameOf(row.layers, state.table) : labels.parked);
      where.title = where.textContent;
      put(error, "textContent", row.error ?? "");
      strength.element.hidden = time.element.hidden = !line;
      strength.element.style.display = time.element.style.display = line ? "" : "none";
      if (line) {
        strength.update(row.strength);
        time.update(row.start, row.end);
      }
    };
    return { element, update };
  }

  chipKey(event, i) {
    if (event.key !== "Delete" && event.key !== "Backspace") return;
    event.preventDefault();
    event.stopPropagation();
    if (!this.state.locked) this.state.commitRows(remove(this.state.rows, i, this.state.table));
  }

  textField(i, apply) {
    const { state } = this;
    const element = make("input", {
      type: "text",
      className: "gl-grow",
      placeholder: this.labels().text,
      ariaLabel: this.labels().text,
      data: { focus: `text${i}` },
      oninput: () => apply({ text: element.value }),
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        this.addAfter(i);
      },
    });
    const update = (value) => {
      element.readOnly = Boolean(state.locked);
      // What is typed may end in a blank that the value has not.
      if (element.value.trim() !== value.trim() || document.activeElement !== element) put(element, "value", value);
    };
    return { element, update };
  }

  letterField(i, apply) {
    const { state } = this;
    const element = make("select", {
      className: "gl-grow",
      ariaLabel: this.labels().socket,
      data: { focus: `text${i}` },
      onchange: () => apply({ text: element.value }),
    });
    const update = (value) => {
      const letter = value.trim();
      const known = state.letters.some((one) => one.letter === letter.toUpperCase());
      const options = [...state.letters, ...(known ? [] : [{ letter, title: this.labels().empty }])];
      element.replaceChildren(
        ...options.map((one) => make("option", { value: one.letter }, `${one.letter}: ${one.title}`)),
      );
      element.value = known ? letter.toUpperCase() : letter;
      element.disabled = Boolean(state.locked);
    };
    return { element, update };
  }

  strengthField(apply) {
    const set = (value) => Number.isFinite(value) && apply({ strength: value });
    const hint = this.labels().strength;
    const slider = make("input", {
      type: "range",
      min: 0,
      max: 2,
      step: 0.05,
      title: hint,
      ariaLabel: hint,
      oninput: () => set(slider.valueAsNumber),
    });
    const field = make("input", {
      type: "number",
      step: 0.05,
      title: hint,
      ariaLabel: hint,
      oninput: () => set(field.valueAsNumber),
    });
    const update = (value) => {
      if (slider.valueAsNumber !== value) slider.value = String(value);
      if (field.valueAsNumber !== value) field.value = String(value);
      slider.disabled = field.disabled = Boolean(this.state.locked);
    };
    return {
      element: make(
        "label",
        { className: "gl-strength", title: hint },
        make("span", { className: "gl-dim" }, this.labels().strengthName),
        slider,
        field,
      ),
      update,
    };
  }

  // A bar with two handles over the sampling.
  timeField(i, apply) {
    const { state } = this;
    const hint = this.labels().time;
    const handle = (name) =>
      make("input", { type: "range", min: 0, max: 1, step: 0.01, title: hint, ariaLabel: `${hint}: ${name}` });
    const first = handle(this.labels().from),
      last = handle(this.labels().to);
    const round = (value) => Math.round(value * 100) / 100;
    first.oninput = () => apply({ start: Math.min(round(first.valueAsNumber), round(state.rows[i].end - 0.01)) });
    last.oninput = () => apply({ end: Math.max(round(last.valueAsNumber), round(state.rows[i].start + 0.01)) });
    const bar = make("i"),
      said = make("span", { className: "gl-dim" });
    const update = (start, end) => {
      first.value = String(start);
      last.value = String(end);
      bar.style.left = `${100 * start}%`;
      bar.style.width = `${100 * (end - start)}%`;
      first.disabled = last.disabled = Boolean(state.locked);
      put(said, "textContent", `${percent(start)}–${percent(end)} %`);
    };
    return {
      element: make(
        "div",
        { className: "gl-time", title: hint },
        make("span", { className: "gl-dim" }, this.labels().timeName),
        make("div", { className: "gl-span" }, make("u"), bar, first, last),
        said,
      ),
      update,
    };
  }

  addAfter(after) {
    const { state } = this;
    if (state.locked) return;
    const text = state.letters ? this.freeLetter() : "";
    const [rows, chip] = add(state.rows, text, state.table, after);
    state.commitRows(rows);
    state.choose(chip);
    this.list.querySelector(`[data-focus="text${chip}"]`)?.focus({ preventScroll: true });
  }

  freeLetter() {
    const used = this.state.rows.map((row) => row.text?.toUpperCase());
    return this.state.letters.find((one) => !used.includes(one.letter))?.letter ?? "A";
  }
}
