"""What can be measured of a graph on the canvas: nodes over one another, links behind nodes, the zoom to see all."""

from tools.canvas import Canvas

# Rectangles of nodes with their titles, as drawn: of the elements in Nodes 2.0. A link runs behind a node when its
# drawn path crosses its outline, 4 units inside, and it begins and ends elsewhere. `path` is what the canvas hit-tests.
MEASURE = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  app.canvas.setDirty(true, true);
  await frame(); await frame(); await frame();
  const { scale, offset } = app.canvas.ds, area = app.canvas.canvas.getBoundingClientRect();
  const nodes = app.graph.nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const box = element?.getBoundingClientRect();
    const [x, y, width, height] = element
      ? [(box.x - area.x) / scale - offset[0], (box.y - area.y) / scale - offset[1], box.width / scale,
      box.height / scale]
      : node.boundingRect;
    return { id: node.id, name: `${node.id} ${node.title}`, x, y, width, height };
  });
  const over = [];
  nodes.forEach((a, i) => nodes.slice(i + 1).forEach(b => {
    const wide = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
    const high = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
    if (wide > 2 && high > 2) over.push(`${a.name} over ${b.name}`);
  }));
  const pen = new OffscreenCanvas(1, 1).getContext("2d");
  pen.lineWidth = 5;
  const links = [...app.graph.links.values()];
  const segments = links.map(link => ({ path: link.path, links: [link] }));
  for (const reroute of app.graph.reroutes.values())
    segments.push({ path: reroute.path, links: links.filter(link => reroute.linkIds.has(link.id)) });
  const crosses = (path, node) => {
    const [left, top, right, bottom] = [node.x + 4, node.y + 4, node.x + node.width - 4, node.y + node.height - 4];
    for (let x = left; x <= right; x += 4)
      if (pen.isPointInStroke(path, x, top) || pen.isPointInStroke(path, x, bottom)) return true;
    for (let y = top; y <= bottom; y += 4)
      if (pen.isPointInStroke(path, left, y) || pen.isPointInStroke(path, right, y)) return true;
    return false;
  };
  const behind = new Set(), drawn = segments.filter(segment => segment.path).length;
  for (const segment of segments) {
    const ends = new Set(segment.links.flatMap(link => [link.origin_id, link.target_id]));
    for (const node of nodes)
      if (segment.path && !ends.has(node.id) && crosses(segment.path, node))
        for (const { id, origin_id, target_id } of segment.links)
          behind.add(`link ${id} (${origin_id} to ${target_id}) behind ${node.name}`);
  }
  const boxes = nodes.concat((app.graph.groups ?? []).map(({ pos, size }) =>
    ({ x: pos[0], y: pos[1], width: size[0], height: size[1] })));
  const left = Math.min(...boxes.map(box => box.x)), top = Math.min(...boxes.map(box => box.y));
  return {
    over, behind: [...behind], links: links.length, segments: segments.length, drawn,
    linksBehind: new Set([...behind].map(text => text.split(" ")[1])).size,
    width: Math.max(...boxes.map(box => box.x + box.width)) - left,
    height: Math.max(...boxes.map(box => box.y + box.height)) - top,
  };
}"""
# The bars of the canvas at the sides of a window, in pixels: left, top, right, bottom.
BARS = (60, 100, 10, 10)


def measure(canvas: Canvas) -> dict:
    """`over`: pairs of nodes; `behind`: links and the nodes they run behind; `width`, `height` of all, in units."""
    return canvas.page.evaluate(MEASURE)


def zoom(measured: dict, window: tuple[int, int] = (1920, 1080)) -> float:
    """The largest zoom at which everything can be seen in a window of this many pixels, beside and below the bars."""
    left, top, right, bottom = BARS
    return min((window[0] - left - right) / measured["width"], (window[1] - top - bottom) / measured["height"])
