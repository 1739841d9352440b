// The table of Per-Block Prompt Conditioning: one row per line of its `layers` text. The text itself is the value of the widget, so a
// saved workflow, the API and the headless form are one and the same; a row is nothing but "LAYERS: PROMPT" in two fields.
import { app } from "../../../scripts/app.js";

const LABELS = {
  en: { layers: "Layers", prompt: "Prompt", add: "Add line", remove: "Remove this line" },
  ja: { layers: "層", prompt: "プロンプト", add: "行を追加", remove: "この行を削除" },
};
const SUGGESTIONS = ["middle", "outer", "down", "up", "all", "innermost 3", "0-5", "MID", "middle @0-0.5", "outer x0.5"];
const ROW_HEIGHT = 30;
const FIELD = "box-sizing:border-box;min-width:0;padding:4px;border:1px solid var(--border-color);border-radius:4px;" +
  "background:var(--comfy-input-bg);color:var(--input-text);font-size:12px;";

// "middle: a lizard" → {head: "middle", text: "a lizard"}; a comment has no text.
function parse(value) {
  return value.split("\n").filter((line) => line.trim()).map((line) => {
    const colon = line.trimStart().startsWith("#") ? -1 : line.indexOf(":");
    return colon < 0 ? { head: line, text: null } : { head: line.slice(0, colon), text: line.slice(colon + 1).replace(/^ /, "") };
  });
}

function serialize(rows) {
  return rows.map((row) => (row.text === null ? row.head : `${row.head}: ${row.text}`)).join("\n");
}

function field(value, label, width, change) {
  const input = document.createElement("input");
  input.value = value;
  input.placeholder = input.ariaLabel = input.title = label;
  input.style.cssText = FIELD + `flex:${width};`;
  // A line break would be another row.
  input.addEventListener("input", () => change(input.value.replaceAll("\n", " ")));
  return input;
}

function button(sign, label, press) {
  const element = document.createElement("button");
  element.textContent = sign;
  element.title = element.ariaLabel = label;
  element.style.cssText = FIELD + "cursor:pointer;flex:none;";
  element.addEventListener("click", press);
  return element;
}

function layerTable(node, name, initial) {
  const labels = LABELS[app.extensionManager.setting.get("Comfy.Locale")] ?? LABELS.en;
  const element = document.createElement("div");
  element.className = "guidance-lab-layer-table";
  element.style.cssText = "width:100%;box-sizing:border-box;display:flex;flex-direction:column;gap:4px;overflow-y:auto;";
  // Nodes are dragged by the pointer; a pointer in a field is meant for the field.
  element.addEventListener("pointerdown", (event) => event.stopPropagation());
  const list = document.createElement("datalist");
  list.id = `guidance-lab-layers-${crypto.randomUUID()}`;
  list.append(...SUGGESTIONS.map((value) => Object.assign(document.createElement("option"), { value })));
  let rows = parse(initial);

  function change(edit) {
    edit();
    widget?.callback?.(serialize(rows));
    app.graph.setDirtyCanvas(true, true);
  }

  function row(entry) {
    const line = document.createElement("div");
    line.style.cssText = "display:flex;gap:4px;flex:none;";
    const head = field(entry.head, labels.layers, entry.text === null ? "1" : "0 1 35%", (value) => change(() => (entry.head = value)));
    head.setAttribute("list", list.id);
    const remove = button("×", labels.remove, () => {
      change(() => (rows = rows.filter((other) => other !== entry)));
      draw();
    });
    const text = entry.text === null ? [] : [field(entry.text, labels.prompt, "1", (value) => change(() => (entry.text = value)))];
    line.append(head, ...text, remove);
    return line;
  }

  function draw() {
    const add = button("+ " + labels.add, labels.add, () => {
      change(() => rows.push({ head: "", text: "" }));
      draw();
    });
    element.replaceChildren(list, ...rows.map(row), add);
  }

  const widget = node.addDOMWidget(name, "GUIDANCELAB_LAYER_TABLE", element, {
    getValue: () => serialize(rows),
    setValue: (value) => {
      if (value !== serialize(rows)) {
        rows = parse(String(value ?? ""));
        draw();
      }
    },
    getMinHeight: () => ROW_HEIGHT * (rows.length + 1) + 8,
  });
  draw();
  return { widget };
}

app.registerExtension({
  name: "GuidanceLab.LayerTable",
  getCustomWidgets: () => ({
    GUIDANCELAB_LAYER_TABLE: (node, name, [, options]) => layerTable(node, name, options?.default ?? ""),
  }),
});
