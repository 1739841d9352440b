// A node grows and shrinks with what it shows, some frames after it was made, loaded, changed or undone. Nobody changed anything, so the
// history must not hold it: the first key let go would record it as a new change; the next undo would take back only that, and after
// an undo there would be nothing left to redo.
import { app } from "../../../../scripts/app.js";

const growing = new Set(); // nodes with something of ours on them

// Keeps the growth of this node out of the history of undo and redo.
export function leaveGrowthUnrecorded(node) {
  growing.add(node);
}

// Calls change(recorded) for what the canvas recorded last of each node of ours; it compares with that.
function eachRecorded(change) {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  if (!tracker?.activeState || tracker._restoringState) return; // while it undoes, the record is still of the graph before
  const state = tracker.activeState;
  const graphs = [state, ...(state.definitions?.subgraphs ?? [])];
  for (const node of growing) {
    if (!node.graph) {
      growing.delete(node);
      continue;
    }
    for (const graph of graphs) {
      if (graph === state ? node.graph !== app.rootGraph : graph.id !== node.graph.id) continue;
      const recorded = graph.nodes?.find((one) => String(one.id) === String(node.id) && one.type === node.type);
      if (recorded) change(recorded, node);
    }
  }
}

const takeOver = (recorded, node) => (recorded.size = [node.size[0], node.size[1]]);

// Before a person does something, any other height than the recorded one is one that the node got by itself.
const before = () => eachRecorded(takeOver);

// Afterwards a person may have made the node taller or lower, but only a node that grew was recorded with less than it can have.
const after = () =>
  eachRecorded((recorded, node) => {
    const least = node.computeSize()[1];
    if (recorded.size[1] < least && node.size[1] >= least) takeOver(recorded, node);
  });

// Sets the height of a node that fits what it shows. While a button is held somebody may be drawing the node larger: that is recorded.
export function fitHeight(node, height) {
  if (!held) before();
  node.setSize([node.size[0], height]);
  if (!held) before();
}

// When a key or a button is let go, the canvas looks for changes; here is just before.
let held = false;
for (const [type, holds, correct] of [
  ["pointerdown", true, before],
  ["keydown", false, before],
  ["pointerup", false, after],
  ["pointercancel", false, after],
  ["mouseup", false, after],
  ["keyup", false, after],
])
  window.addEventListener(
    type,
    () => {
      correct();
      held = holds;
    },
    true,
  );
