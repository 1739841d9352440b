// A node grows with what it shows, some frames after it was made, loaded or undone. Nobody changed anything, so the history must not
// hold it: the first key let go after an undo would record the growth as a new change, and there would be nothing left to redo.
import { app } from "../../../../scripts/app.js";

const growing = new Set(); // nodes with something of ours on them

// Keeps the growth of this node out of the history of undo and redo.
export function leaveGrowthUnrecorded(node) {
  growing.add(node);
}

// The canvas compares with the state that it recorded last. A height below the least that the node can have is one of before it grew.
function correctRecord() {
  const state = app.extensionManager.workflow?.activeWorkflow?.changeTracker?.activeState;
  const graphs = [state, ...(state?.definitions?.subgraphs ?? [])];
  for (const node of growing) {
    if (!node.graph) {
      growing.delete(node);
      continue;
    }
    const least = node.computeSize()[1];
    for (const graph of graphs) {
      if (graph === state ? node.graph !== app.rootGraph : graph.id !== node.graph.id) continue;
      const recorded = graph?.nodes?.find((one) => String(one.id) === String(node.id) && one.type === node.type);
      if (recorded?.size[1] < least && node.size[1] >= least) recorded.size = [node.size[0], node.size[1]];
    }
  }
}

// When a key or a button is let go, the canvas looks for changes; here is just before.
for (const type of ["pointerup", "mouseup", "keydown", "keyup"]) window.addEventListener(type, correctRecord, true);
