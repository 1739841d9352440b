// A picture on a node that is no input: in no prompt and in no saved workflow, as high as what it shows. `view` has an `element` and,
// inside of it, the `sheet` whose height counts.
import { app } from "../../../../scripts/app.js";
import { shareCanvasGestures } from "./gestures.js";
import { fitHeight } from "./growth.js";
import { keepPlace } from "./place.js";

// least: its height in pixels before it has shown anything; room: what is left free below.
export function addViewWidget(node, name, view, least, room = 20) {
  shareCanvasGestures(view.element);
  let height = least;
  const widget = node.addDOMWidget(name, `GUIDANCELAB_${name.toUpperCase()}`, view.element, {
    serialize: false, // in no prompt
    hideOnZoom: false,
    getMinHeight: () => height + room,
  });
  widget.serialize = false; // and in no saved workflow
  keepPlace(widget, node, name, view.element);
  new ResizeObserver(() => {
    const now = view.sheet.offsetHeight;
    if (!now || Math.abs(now - height) < 2) return;
    height = now;
    if (!LiteGraph.vueNodesMode && node.graph)
      fitHeight(node, Math.max(node.size[1], node.computeSize()[1]));
    app.canvas?.setDirty(true, true);
  }).observe(view.sheet);
  return widget;
}
