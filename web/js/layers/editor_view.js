// The whole layer editor: the bar, the map, the chips, and the same value as plain text. Several views may show one state.
import { ChipsView } from "./chips_view.js";
import { make, put } from "./dom.js";
import { MapView } from "./map_view.js";
import { PresetsView } from "./presets_view.js";
import { parse } from "./prompts.js";
import { words } from "./strings.js";
import { addStyle } from "./style.js";

export class EditorView {
  // locale() is the language of the page; onResize() is told when the content may need another height.
  constructor(state, locale, onResize = () => {}) {
    addStyle();
    this.state = state;
    this.labels = () => words(locale());
    this.onResize = onResize;
    this.map = new MapView(state, this.labels);
    this.presets = new PresetsView(state, this.labels);
    this.chips = new ChipsView(state, this.labels);
    this.family = make("select", { onchange: () => this.chooseFamily() });
    this.source = make("span", { className: "gl-dim gl-grow" });
    this.toggle = make("button", { type: "button", className: "gl-toggle", onclick: () => this.flip() });
    this.locked = make("div", { className: "gl-locked" });
    this.add = make("button", {
      type: "button",
      className: "gl-add",
      onclick: () => this.chips.addAfter(state.rows.length - 1),
    });
    this.text = this.textBox();
    this.hint = make("div", { className: "gl-dim" });
    this.picture = make(
      "div",
      { style: { display: "contents" } },
      this.map.element,
      this.hint,
      this.presets.element,
      this.chips.element,
      this.add,
    );
    this.body = make(
      "div",
      { className: "gl-body" },
      make("div", { className: "gl-row gl-bar" }, this.family, this.source, this.toggle),
      this.locked,
      this.picture,
      this.text.element,
    );
    this.element = make("div", { className: "gl-editor guidance-lab-layer-editor" }, this.body);
    this.listener = () => this.update();
    state.listeners.add(this.listener);
    this.observer = new ResizeObserver(() => this.body.offsetHeight && this.onResize(this.body.offsetHeight));
    this.observer.observe(this.body);
    this.update();
  }

  destroy() {
    this.state.listeners.delete(this.listener);
    this.observer.disconnect();
  }

  flip() {
    this.state.asText = !this.state.asText;
    this.state.changed();
    if (this.state.asText) this.text.field.focus({ preventScroll: true });
  }

  chooseFamily() {
    const family = this.state.families[Number(this.family.value)];
    if (family) this.state.chooseFamily(family);
  }

  update() {
    const { state } = this;
    const labels = this.labels();
    this.element.classList.toggle("gl-readonly", Boolean(state.locked));
    this.updateFamilies(labels);
    put(this.source, "textContent", state.readFromModel ? labels.readShort : labels.typicalShort);
    this.family.title = this.source.title = state.readFromModel ? labels.read : labels.typical;
    put(this.toggle, "textContent", state.asText ? labels.asPicture : labels.asText);
    this.locked.hidden = !state.locked;
    this.locked.style.display = state.locked ? "" : "none";
    const { from } = state.locked ?? {};
    put(this.locked, "textContent", from ? `${labels.linked} ${from}. ${labels.linkedHint}` : labels.face);
    this.picture.style.display = state.asText ? "none" : "contents";
    this.text.element.style.display = state.asText ? "" : "none";
    this.toggle.style.display = this.add.style.display = state.isSet ? "none" : "";
    put(this.hint, "textContent", state.isSet ? labels.setHint : labels.hint);
    this.hint.style.display = state.locked ? "none" : "";
    put(this.add, "textContent", labels.add);
    this.add.title = labels.addHint;
    if (state.asText) this.text.update();
    else {
      this.map.update();
      this.presets.update();
      this.chips.update();
    }
  }

  updateFamilies(labels) {
    const { state } = this;
    const names = state.families.map((one) => one.name);
    const own = `${state.tableName ?? state.table.architecture} · ${state.table.layers.length} ${labels.layers}`;
    const key = [own, state.recipe, ...names].join();
    if (key !== this.familyKey) {
      this.familyKey = key;
      const at = state.families.findIndex((one) => one.recipe === state.recipe);
      this.family.replaceChildren(
        ...(at < 0 ? [make("option", { value: "" }, own)] : []),
        ...state.families.map((one, i) =>
          make("option", { value: String(i) }, `${one.name} · ${one.layers} ${labels.layers}`),
        ),
      );
      this.family.value = at < 0 ? "" : String(at);
      this.family.ariaLabel = labels.model;
    }
    this.family.disabled = !state.families.length;
  }

  // The plain text, its lines with typos underlined, and the sentence for each of them.
  textBox() {
    const { state } = this;
    const shadow = make("pre", { ariaHidden: "true" });
    const field = make("textarea", {
      spellcheck: false,
      ariaLabel: "text",
      data: { captureWheel: "true" },
      oninput: () => state.commitText(field.value),
    });
    const problems = make("div");
    const element = make("div", {}, make("div", { className: "gl-textbox" }, field, shadow), problems);
    const update = () => {
      put(field, "value", state.text);
      field.readOnly = Boolean(state.locked);
      field.style.height = "0";
      field.style.height = `${Math.max(120, field.scrollHeight + 4)}px`;
      const rows = parse(state.text, state.table);
      shadow.replaceChildren(
        ...rows.flatMap((row) => [make("span", { className: row.error ? "gl-wavy" : "" }, row.raw), "\n"]),
      );
      problems.replaceChildren(
        ...rows.flatMap((row, i) =>
          row.error ? [make("div", { className: "gl-error" }, `${this.labels().line} ${i + 1}: ${row.error}`)] : [],
        ),
      );
    };
    return { element, field, update };
  }
}
