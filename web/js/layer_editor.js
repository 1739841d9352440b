// The layer editor as a widget: Per-Block Prompt Conditioning, Per-Block Conditioning, the layer set of XTI Style Mix. The value
// of the widget is the plain text that headless users type, so a saved workflow, the API and the picture are one and the same.
import { app } from "../../../scripts/app.js";
import { EditorView } from "./layers/editor_view.js";
import { PROPERTY, READ, families, loadFamilies, onRun, tablesOf } from "./layers/known_tables.js";
import { promoteEditors } from "./layers/promotion.js";
import { LayerState } from "./layers/state.js";
import { shareCanvasGestures } from "./layers/gestures.js";
import { fitHeight } from "./layers/growth.js";
import { chain, keepPlace } from "./layers/place.js";

const TYPE = "GUIDANCELAB_LAYER_TABLE";
const SET_TYPE = "GUIDANCELAB_LAYER_SET"; // the value is the layers of one line
const LETTERS_NODE = "GuidanceLab_PerBlockConditioning";
const MARGIN = 10; // of a DOM widget on the classic canvas, above and below
const locale = () => app.extensionManager.setting.get("Comfy.Locale");
const editors = new WeakMap(); // node → its editors, for what becomes known of its model

// Grows or shrinks a node with its editor, as long as nobody made it taller by hand.
function fitNode(node, widget, before) {
  const wanted = node.computeSize()[1];
  if (node.size[1] < wanted || Math.abs(node.size[1] - before) < 4) fitHeight(node, wanted);
  app.canvas?.setDirty(true, true);
}

// The canvas keeps its history by the mouse and the keys; in a field both belong to the field until it is left.
const rememberForUndo = () => app.extensionManager.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();

// An editor on `node` that begins with `text` and tells write(text) what becomes of it; `owner` is the node whose model it is about.
// Returns what its DOM widget is made of; `adopt` takes that widget.
export function makeEditor(node, name, { text, write, owner = node, isSet = false }) {
  const state = new LayerState(
    text,
    (value) => {
      write(value);
      app.canvas?.setDirty(true, true);
    },
    isSet,
  );
  let height = 300,
    widget;
  const view = new EditorView(state, locale, (content) => {
    if (Math.abs(content - height) < 2) return;
    const before = node.computeSize()[1];
    height = content;
    if (widget && node.graph && !LiteGraph.vueNodesMode) fitNode(node, widget, before);
  });
  shareCanvasGestures(view.element);
  view.element.addEventListener("change", rememberForUndo);
  const options = { hideOnZoom: false, minNodeSize: [460, 500], getMinHeight: () => height + 2 * MARGIN };
  const adopt = (made) => {
    widget = made;
    keepPlace(widget, node, name, view.element);
    // Core hides what is connected; the editor stays and shows what comes over the connection.
    widget.isVisible = function () {
      return !this.hidden && node.isWidgetVisible(this);
    };
    showInPanel(widget, node, () => new EditorView(state, locale));
  };
  follow(node, name, state, owner);
  return { state, view, options, adopt };
}

// The right-hand panel has no place for another pack's elements: it lets a widget draw on a canvas of its own. There, beside that
// canvas, goes a second view of the same state.
function showInPanel(widget, node, makeView) {
  const views = new Map();
  let y = 0;
  const draw = widget.draw;
  widget.draw = function (ctx, ...rest) {
    const host = ctx.canvas.parentElement;
    if (ctx.canvas === app.canvas.canvas || ctx.canvas === app.canvas.bgcanvas || !host) {
      y = this.y;
      return draw.call(this, ctx, ...rest);
    }
    [this.width, this.y] = [undefined, y]; // the panel set its own, which would bend the node on the canvas
    for (const [place, view] of views) {
      if (place.isConnected) continue;
      view.destroy();
      views.delete(place);
    }
    if (views.has(host)) return undefined;
    const view = makeView();
    views.set(host, view);
    ctx.canvas.style.display = "none";
    host.append(view.element);
    host.style.margin = "0";
    for (const type of ["pointerdown", "keydown"])
      view.element.addEventListener(type, (event) => event.stopPropagation());
    return undefined;
  };
}

// Keeps an editor up to date with what happens around its node: connections, the other widgets, what a run tells.
function follow(node, name, state, owner) {
  state.chooseFamily = (family) => {
    owner.properties[PROPERTY] = family.recipe;
    showTables(owner);
  };
  editors.set(owner, [...(editors.get(owner) ?? []), state]);
  const refresh = (again = 3) => {
    state.locked = connection(node, name);
    if (state.locked && !state.locked.from && again) setTimeout(() => refresh(again - 1), 150);
    if (state.locked?.text !== undefined && state.locked.text !== state.text) state.setText(state.locked.text);
    if (owner.comfyClass === LETTERS_NODE) readLetters(owner, state);
    state.changed();
  };
  const refreshAll = () => {
    refresh();
    watchSingleBlocks(owner);
    showTable(owner, state);
  };
  chain(node, "onConnectionsChange", () => queueMicrotask(() => refresh()));
  for (const event of ["onConfigure", "onAdded"]) chain(node, event, () => queueMicrotask(refreshAll));
  queueMicrotask(refreshAll);
}

// Where a text comes from another node: {from, text where it can be read now}; null where it is this node's own.
function connection(node, name) {
  const input = node.inputs?.find((one) => one.widget?.name === name || one.name === name);
  if (!input || input.link === null || input.link === undefined) return null;
  const link = node.graph?.getLink?.(input.link) ?? node.graph?.links?.[input.link];
  const source = link && node.graph.getNodeById(link.origin_id);
  if (!source) return {}; // the face of the subgraph that this node is in, or a node that is still being loaded
  const texts = (source.widgets ?? []).filter((widget) => typeof widget.value === "string");
  return { from: `“${source.title}”`, text: texts.length === 1 ? texts[0].value : undefined };
}

function readLetters(node, state) {
  state.letters = (node.inputs ?? []).flatMap((input) => {
    const letter = /^conditionings\.([A-P])$/.exec(input.name)?.[1];
    const link = letter && input.link != null ? node.graph?.getLink?.(input.link) : null;
    const source = link && node.graph.getNodeById(link.origin_id);
    return source ? [{ letter, title: source.title }] : [];
  });
}

function watchSingleBlocks(node) {
  const widget = node.widgets?.find((one) => one.name === "single_blocks");
  if (!widget || widget.guidanceLabWatched) return;
  widget.guidanceLabWatched = true;
  chain(widget, "callback", () => showTables(node));
}

const showTables = (owner) => (editors.get(owner) ?? []).forEach((state) => showTable(owner, state));

async function showTable(node, state) {
  const single = Boolean(node.widgets?.find((one) => one.name === "single_blocks")?.value);
  const pick = (tables) => (single ? tables.single : tables.plain);
  const lists = families();
  state.families = lists.map((one) => ({ name: one.name, recipe: one.plain.recipe, layers: pick(one).layers.length }));
  const recipe = node.properties?.[PROPERTY];
  const typical = lists.find((one) => one.plain.recipe === recipe) ?? (recipe ? null : lists[0]);
  const own = typical ?? (await tablesOf(recipe)) ?? lists[0];
  state.tableName = own.name;
  state.recipe = own.plain.recipe;
  state.setTable(pick(own), recipe !== undefined && node.properties[READ] === recipe);
}

const widgetOf = (type) => (node, name, spec) => {
  const options = spec[1] ?? {};
  const isSet = type === SET_TYPE;
  const parts = makeEditor(node, name, {
    text: options.default ?? "",
    write: (text) => widget.callback?.(text),
    isSet,
  });
  const widget = node.addDOMWidget(name, type, parts.view.element, {
    ...parts.options,
    getValue: () => parts.state.text,
    setValue: (value) => {
      const text = String(value ?? "");
      if (text !== parts.state.text) parts.state.setText(text);
    },
  });
  parts.adopt(widget);
  return { widget, minWidth: 460, minHeight: isSet ? 300 : 500 };
};

app.registerExtension({
  name: "GuidanceLab.LayerEditor",
  init: loadFamilies,
  setup: () =>
    onRun(
      (node) => editors.has(node),
      (node, recipe) => {
        node.properties[PROPERTY] = recipe;
        node.properties[READ] = recipe;
        showTables(node);
      },
    ),
  getCustomWidgets: () => ({ [TYPE]: widgetOf(TYPE), [SET_TYPE]: widgetOf(SET_TYPE) }),
  nodeCreated: (node) => promoteEditors(node, [TYPE, SET_TYPE], makeEditor),
});
