// XTI Info draws the nearest words of a learned token on the model's layers; the text and the PNG stay for headless use.
import { app } from "../../../scripts/app.js";
import { addViewWidget } from "./layers/view_widget.js";
import { WordsView } from "./layers/words_view.js";
import { pathOf, recall, remember } from "./live/memory.js";

const NODE = "GuidanceLab_XTIInfo";
const LEAST_WIDTH = 420;
const views = new WeakMap();

function addWords(node) {
  const view = new WordsView(() => app.extensionManager.setting.get("Comfy.Locale"));
  addViewWidget(node, "xti_words", view, 10, 10);
  views.set(node, view);
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    const [text] = output?.guidance_lab_words ?? [];
    if (!text) return;
    remember(pathOf(this), "words", text);
    show(this, text);
  };
}

function show(node, text) {
  if (node.size[0] < LEAST_WIDTH) node.setSize([LEAST_WIDTH, node.size[1]]);
  views.get(node).show(JSON.parse(text));
  app.canvas?.setDirty(true, true);
}

function showAgain(graph) {
  for (const node of graph?.nodes ?? []) {
    if (node.subgraph) showAgain(node.subgraph);
    const text = views.has(node) ? recall(pathOf(node), "words") : null;
    if (text) show(node, text);
  }
}

app.registerExtension({
  name: "GuidanceLab.XTIWords",
  nodeCreated: (node) => {
    if (node.comfyClass === NODE) addWords(node);
  },
  afterConfigureGraph: () => showAgain(app.rootGraph ?? app.graph),
});
