// The nearest words of a learned token, layer by layer, on the same picture of the model's layers as the editor draws.
import { make, put } from "./dom.js";
import { MapView } from "./map_view.js";
import { addStyle, colour } from "./style.js";
import { label } from "./table.js";

const CSS = `
.gl-words .gl-cell { flex:1 1 58px; width:58px; max-width:84px; height:36px; flex-direction:column; line-height:1.15; padding:0 2px; }
.gl-words .gl-cell > span { font-size:9px; color:inherit; opacity:.75; }
.gl-words .gl-cell > em { font-style:normal; font-weight:600; font-size:11px; max-width:100%; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
.gl-words .gl-column .gl-cell { height:30px; width:64px; flex:none; }
.gl-words .gl-size { min-width:30px; }
.gl-words .gl-list { min-height:2.6em; font-size:11px; white-space:pre-wrap; }
`;
const EN = {
  grid: "Nearest words of each layer",
  hint: "Each cell: the word nearest to the token there; the stronger the colour, the nearer. Point at a cell for more.",
  norm: "norm",
};
const JA = {
  grid: "各層に最も近い単語",
  hint: "各セルはその層でトークンに最も近い単語です。色が濃いほど近い単語です。セルを指すと詳しく表示します。",
  norm: "ノルム",
};
export const wordsIn = (locale) => (String(locale ?? "en").startsWith("ja") ? JA : EN);

const said = ([word, cosine]) => `${word} ${cosine.toFixed(2)}`;

// Cells that are read, not painted. `layers`: {vectors: [{norm, words: [[word, cosine], ...]}]} in the order of the table.
class WordsMap extends MapView {
  constructor(table, layers, labels, read) {
    super({ table }, labels);
    this.layers = layers;
    this.read = read;
    this.element.addEventListener("pointerover", (event) => this.tell(event.target));
    this.element.addEventListener("focusin", (event) => this.tell(event.target));
    this.lay();
  }

  lay() {
    const { table } = this.state;
    this.table = table;
    this.cells = table.layers.map((_, index) => this.cell(index));
    const flat = table.layers[0].direction === "flat";
    this.element.className = "gl-map" + (flat ? " gl-column" : "");
    this.element.style.gridTemplateRows = flat ? `repeat(${Math.min(10, table.layers.length)}, auto)` : "";
    this.element.replaceChildren(...(flat ? this.cells : this.levels()));
    this.element.ariaLabel = this.labels().grid;
    const nearest = this.layers.map(({ vectors }) => vectors[0].words[0][1]);
    const [low, high] = [Math.min(...nearest), Math.max(...nearest)];
    this.cells.forEach((cell, index) => {
      const share = high > low ? (nearest[index] - low) / (high - low) : 1;
      const ground = `color-mix(in srgb, ${colour(1)} ${Math.round(12 + 48 * share)}%, var(--comfy-menu-bg,#333))`;
      cell.style.background = ground;
      cell.title = cell.ariaLabel = this.text(index);
    });
  }

  cell(index) {
    const cell = super.cell(index);
    const { vectors } = this.layers[index];
    cell.lastChild.replaceWith(make("em", {}, vectors[0].words[0][0]));
    if (vectors.length > 1) cell.firstChild.append(` ×${vectors.length}`);
    return cell;
  }

  text(index) {
    const { vectors } = this.layers[index];
    const lines = vectors.map(({ norm, words }, i) => {
      const name = vectors.length > 1 ? `${label(index, this.table)} [${i}]` : label(index, this.table);
      return `${name} · ${this.labels().norm} ${Number(norm.toPrecision(3))} · ${words.map(said).join(", ")}`;
    });
    return lines.join("\n");
  }

  tell(target) {
    const layer = target.closest?.(".gl-cell")?.dataset.layer;
    if (layer !== undefined) this.read(this.text(Number(layer)));
  }

  press() {}
  drag() {}
  key(event) {
    if (event.key.startsWith("Arrow")) super.key(event);
  }
}

export class WordsView {
  constructor(locale) {
    addStyle();
    if (!document.getElementById("guidance-lab-words-style"))
      document.head.append(make("style", { id: "guidance-lab-words-style", textContent: CSS }));
    this.labels = () => wordsIn(locale());
    this.sheet = make("div", { className: "gl-body" });
    this.element = make("div", { className: "gl-editor gl-words guidance-lab-words" }, this.sheet);
  }

  // told: {table, encoders: [{encoder, layers}]} as XTI Info gives it.
  show({ table, encoders }) {
    const parts = encoders.flatMap(({ encoder, layers }) => {
      const list = make("div", { className: "gl-list gl-dim" }, this.labels().hint);
      const map = new WordsMap(table, layers, this.labels, (text) => put(list, "textContent", text));
      const name = encoders.length > 1 ? [make("b", {}, encoder)] : [];
      return [...name, map.element, list];
    });
    this.sheet.replaceChildren(...parts);
  }
}
