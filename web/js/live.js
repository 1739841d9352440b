// Nodes tell about their runs while they run: CLIP guidance, XTI Train, guidances with a curve. What they told, and the lines of text
// that nodes of the pack show, are there again after a reload of the page.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addViewWidget } from "./layers/view_widget.js";
import { forget, nodeAt, pathOf, recall, remember } from "./live/memory.js";
import { fold } from "./live/state.js";
import { LiveView, RememberedText } from "./live/view.js";

const OURS = "GuidanceLab_";
const locale = () => app.extensionManager.setting.get("Comfy.Locale");
const states = new WeakMap(); // node → what it told of its last run
const shown = new WeakMap(); // node → {name: view}

// The view of that name on a node, made where there is none yet; it is in no prompt and in no saved workflow.
function viewOn(node, name, View) {
  const views = shown.get(node) ?? {};
  shown.set(node, views);
  if (views[name]) return views[name].view;
  const view = new View(locale);
  views[name] = { view, widget: addViewWidget(node, name, view, 40) };
  return view;
}

function remove(node, name) {
  const made = shown.get(node)?.[name];
  if (!made) return;
  delete shown.get(node)[name];
  node.removeWidget?.(made.widget);
  made.view.element.remove();
}

function tell(node, state) {
  states.set(node, state);
  viewOn(node, "live", LiveView).show(state);
  app.canvas?.setDirty(true, true);
}

function hear({ detail }) {
  const node = nodeAt(detail.node);
  if (!node) return;
  const state = fold(states.get(node), detail);
  tell(node, state);
  remember(detail.node, "live", state);
}

function hearText({ detail }) {
  const node = nodeAt(detail.nodeId);
  if (!node?.comfyClass?.startsWith(OURS)) return;
  remember(detail.nodeId, "text", detail.text);
  remove(node, "said"); // core shows the new one itself
}

function showAgain(node) {
  const path = node.comfyClass?.startsWith(OURS) ? pathOf(node) : null;
  if (path === null || node.widgets?.some((widget) => widget.name === "$$node-text-preview")) return;
  const state = recall(path, "live"),
    text = recall(path, "text");
  if (state && !states.has(node)) tell(node, state);
  if (text) viewOn(node, "said", RememberedText).show(text);
}

function everyNode(graph, visit) {
  for (const node of graph?.nodes ?? []) {
    visit(node);
    if (node.subgraph) everyNode(node.subgraph, visit);
  }
}

app.registerExtension({
  name: "GuidanceLab.Live",
  setup() {
    api.addEventListener("guidance_lab.live", hear);
    api.addEventListener("progress_text", hearText);
    api.addEventListener("execution_start", () =>
      everyNode(app.rootGraph ?? app.graph, (node) => {
        if (!shown.get(node)?.said) return;
        forget(pathOf(node), "text");
        remove(node, "said");
      }),
    );
  },
  afterConfigureGraph: () => everyNode(app.rootGraph ?? app.graph, showAgain),
});
