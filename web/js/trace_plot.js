// Guidance Trace Plot shows its trace on the node as a picture that answers the pointer; the PNG stays for headless use.
import { app } from "../../../scripts/app.js";
import { addViewWidget } from "./layers/view_widget.js";
import { pathOf, recall, remember } from "./live/memory.js";
import { TracePlot } from "./trace/plot_view.js";

const NODE = "GuidanceLab_GuidanceTracePlot";
const LEAST_WIDTH = 420;
const plots = new WeakMap(); // node → its plot

function addPlot(node) {
  const plot = new TracePlot(() => app.extensionManager.setting.get("Comfy.Locale"));
  // The curves alone: the PNG with the same content is an output, for Save Image and for headless use.
  node.hideOutputImages = true; // in Nodes 2.0
  node.onDrawBackground = () => {}; // in the classic canvas, where core adds the picture from here
  if (node.size[0] < LEAST_WIDTH) node.setSize([LEAST_WIDTH, node.size[1]]); // a saved width comes after this
  addViewWidget(node, "trace_plot", plot, 60);
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    const [text] = output?.guidance_lab_trace ?? [];
    if (text) {
      plot.show(JSON.parse(text));
      remember(pathOf(this), "trace", text);
    }
    app.canvas?.setDirty(true, true);
  };
  plots.set(node, plot);
}

// After a reload of the page: what the node showed last in this tab.
function showAgain(graph) {
  for (const node of graph?.nodes ?? []) {
    if (node.subgraph) showAgain(node.subgraph);
    const plot = plots.get(node);
    const text = plot && !plot.record ? recall(pathOf(node), "trace") : null;
    if (text) plot.show(JSON.parse(text));
    if (plot && node.size[0] < LEAST_WIDTH) node.setSize([LEAST_WIDTH, node.size[1]]);
  }
}

app.registerExtension({
  name: "GuidanceLab.TracePlot",
  nodeCreated: (node) => {
    if (node.comfyClass === NODE) addPlot(node);
  },
  afterConfigureGraph: () => showAgain(app.rootGraph ?? app.graph),
});
