// An editor whose input was promoted to the face of a subgraph: there too it is an editor, on the value that the subgraph keeps.
const LEAST_WIDTH = 400; // of a node that carries an editor

// A subgraph node makes a widget for each promoted input; for ours it makes an editor instead of an empty line.
export function promoteEditors(node, types, makeEditor) {
  if (!node.isSubgraphNode?.()) return;
  const original = node.createPromotedHostWidget;
  node.createPromotedHostWidget = function (input, id, source) {
    if (!types.includes(source.type)) return original?.call(this, input, id, source);
    const settled = this.graph && this.graph.getNodeById(this.id) === this;
    if (!settled) return undefined; // it is asked again when the node has its place
    const kept = this._projectPromotedWidget({ widgetId: id, name: input.name, label: input.label });
    return promoted(this, input.name, source, kept, makeEditor);
  };
}

// kept: the subgraph's own record of the value, read and written through its `value`.
function promoted(node, name, { type, node: owner }, kept, makeEditor) {
  const read = () => String(kept.value ?? "");
  const parts = makeEditor(node, name, {
    text: read(),
    write: (text) => (kept.value = text),
    owner,
    isSet: type.endsWith("_SET"),
  });
  let gone = false;
  const widget = node.addDOMWidget(name, type, parts.view.element, {
    ...parts.options,
    getValue: () => read(),
    setValue: (value) => {
      kept.value = String(value ?? "");
      if (read() !== parts.state.text) parts.state.setText(read());
    },
  });
  parts.adopt(widget);
  if (node.size[0] < LEAST_WIDTH) node.setSize([LEAST_WIDTH, node.size[1]]);
  const { onRemove, isVisible } = widget;
  widget.onRemove = function () {
    gone = true;
    parts.view.destroy();
    onRemove?.call(this);
  };
  widget.isVisible = function () {
    // The subgraph writes its record directly when a workflow is loaded or undone.
    if (!gone && read() !== parts.state.text) parts.state.setText(read());
    return !gone && isVisible.call(this);
  };
  return widget;
}
