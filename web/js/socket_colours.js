// The pack's own socket types have colours of their own, on the classic canvas and on Nodes 2.0, whatever palette is chosen.
import { app } from "../../../scripts/app.js";

// Kept apart from core's colours (lavender MODEL, yellow CLIP, red VAE, orange CONDITIONING, pink LATENT, blue IMAGE, green MASK).
const COLOURS = {
  GUIDANCELAB_OBJECTIVE: "#3fc48d",
  GUIDANCELAB_CLIP_SCORER: "#c2b04a",
  GUIDANCELAB_CAPTIONER: "#c97b5a",
  GUIDANCELAB_XTI: "#d05ce3",
  GUIDANCELAB_XTI_PHOTOS: "#8f8fd9",
  GUIDANCELAB_GALIP: "#35b3c4",
  GUIDANCELAB_TRACE: "#9fb4c0",
};

// A palette writes an empty colour for types that it does not know, each time one is chosen; ours then shows. Its own choice wins.
function define(colours) {
  for (const [type, ours] of Object.entries(COLOURS)) {
    let chosen = colours[type];
    Object.defineProperty(colours, type, {
      get: () => chosen || ours,
      set: (colour) => (chosen = colour),
      configurable: true,
      enumerable: true,
    });
  }
}

app.registerExtension({
  name: "GuidanceLab.SocketColours",
  setup() {
    define(app.canvas.default_connection_color_byType);
    define(app.canvas.constructor.link_type_colors);
    const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    document.head.append(
      Object.assign(document.createElement("style"), { textContent: `:root { ${variables.join(" ")} }` }),
    );
  },
});
