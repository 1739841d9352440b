// What a mouse does on an editor is meant for the editor, except what moves the canvas: wheel and middle button, as on core's text area.
import { app } from "../../../../scripts/app.js";

const MIDDLE = { pointerdown: ["button", 1], pointermove: ["buttons", 4], pointerup: ["button", 1] };
const HANDLERS = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };

export function shareCanvasGestures(element) {
  for (const [type, [key, value]] of Object.entries(MIDDLE)) {
    element.addEventListener(type, (event) => {
      const middle = key === "button" ? event.button === value : (event.buttons & value) === value;
      if (middle) app.canvas[HANDLERS[type]](event);
      if (type === "pointerdown") event.stopPropagation(); // a node is dragged by what it does not stop
    });
  }
  element.addEventListener("wheel", (event) => {
    const field = event.target.closest("textarea");
    const scrolls =
      field && document.activeElement === field && field.scrollHeight > field.clientHeight && !event.ctrlKey;
    if (!scrolls) {
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    }
    event.stopPropagation();
  });
}
