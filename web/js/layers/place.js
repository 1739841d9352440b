// Nodes 2.0 keeps the element of a widget in its place when a workflow is loaded anew or undone, or a subgraph is left, as long as the
// node there has the same number; but that node is another object, with another element. Here the right element takes its place.
import { app } from "../../../../scripts/app.js";
import { leaveGrowthUnrecorded } from "./growth.js";

const FRAMES = 90; // how long after a change of the graph Nodes 2.0 may still be drawing it
const owners = new WeakMap(); // element → {node, name}
const elementsOf = new WeakMap(); // node → {name: element}
let left = 0;

function reconcile() {
  for (const element of document.querySelectorAll(".guidance-lab-dom")) {
    const { node, name } = owners.get(element) ?? {};
    if (!node) continue;
    const now = app.canvas?.graph?.getNodeById(node.id);
    const heir = now && now !== node && elementsOf.get(now)?.[name];
    if (heir && !heir.isConnected) element.replaceWith(heir);
  }
  left -= 1;
  if (left > 0) requestAnimationFrame(reconcile);
}

function watch() {
  if (!LiteGraph.vueNodesMode) return; // the classic canvas keeps no element
  if (left <= 0) requestAnimationFrame(reconcile);
  left = FRAMES;
}

// Runs `after` whenever a method of an object was called, which may not be there yet.
export function chain(object, method, after) {
  const before = object[method];
  object[method] = function (...args) {
    const result = before?.apply(this, args);
    after();
    return result;
  };
}

// Keeps the element of a DOM widget where its node is.
export function keepPlace(widget, node, name, element) {
  element.classList.add("guidance-lab-dom");
  owners.set(element, { node, name });
  elementsOf.set(node, { ...elementsOf.get(node), [name]: element });
  chain(node, "onAdded", watch);
  chain(node, "onAdded", () => leaveGrowthUnrecorded(node));
  chain(widget, "onRemove", watch);
  if (!listening) app.canvas?.canvas.addEventListener("litegraph:set-graph", watch);
  listening = true;
  watch();
}

let listening = false;
