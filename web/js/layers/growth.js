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
  if (!tracker?.activeState) return;
  watch(tracker);
  if (tracker._restoringState) return; // while it undoes, the record is still of the graph before
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

// `held`: a button is down and no key came since. `drawn`: a button is down or was let go just now, so a height may be one that a person
// gave, also when a key is pressed meanwhile.
let held = false;
let drawn = false;

// Every look for changes is preceded by this, however many frames the canvas drew, and heights it set, since the key or the button.
function watch(tracker) {
  const prototype = tracker.constructor.prototype;
  if (watched === prototype) return;
  watched = prototype;
  const capture = prototype.captureCanvasState;
  prototype.captureCanvasState = function (...args) {
    drawn ? after() : before();
    return capture.apply(this, args);
  };
}
let watched = null;

function press() {
  before();
  held = drawn = true;
}

function release() {
  held = false;
  setTimeout(() => (drawn = held)); // the canvas looks for changes in this same event
}

function type() {
  before();
  held = false;
}

for (const [event, listener] of [
  ["pointerdown", press],
  ["pointerup", release],
  ["pointercancel", release],
  ["mouseup", release],
  ["keydown", type],
])
  window.addEventListener(event, listener, true);
