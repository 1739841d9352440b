// What nodes showed last, kept for this tab of the browser, so that it is there again after a reload of the page. ComfyUI keeps
// outputs of nodes over a change of workflow, not over a reload. Keyed by the workflow's own id, so that another workflow sees nothing.
import { app } from "../../../../scripts/app.js";

const PREFIX = "guidance_lab.shown.";
const root = () => app.rootGraph ?? app.graph;
const key = (path, what) => `${PREFIX}${root()?.id}.${path}.${what}`;

// The path of a node from the outermost graph, "31:4" in a subgraph, as the server writes it; null where it cannot be found.
export function pathOf(node, graph = root(), before = "") {
  for (const one of graph?.nodes ?? []) {
    if (one === node) return before + one.id;
    const inside = one.subgraph && pathOf(node, one.subgraph, `${before}${one.id}:`);
    if (inside) return inside;
  }
  return null;
}

// The node at such a path.
export function nodeAt(path) {
  let graph = root(),
    node = null;
  for (const id of String(path).split(":")) {
    node = graph?.nodes?.find((one) => String(one.id) === id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

export function remember(path, what, value) {
  const text = JSON.stringify(value);
  try {
    sessionStorage.setItem(key(path, what), text);
  } catch {
    // It is full: what other workflows showed goes.
    for (const one of Object.keys(sessionStorage)) if (one.startsWith(PREFIX)) sessionStorage.removeItem(one);
    try {
      sessionStorage.setItem(key(path, what), text);
    } catch (error) {
      console.warn("Guidance Lab: this browser keeps nothing over a reload:", error.message);
    }
  }
}

export function recall(path, what) {
  try {
    return JSON.parse(sessionStorage.getItem(key(path, what)));
  } catch {
    return null;
  }
}

export const forget = (path, what) => sessionStorage.removeItem(key(path, what));
