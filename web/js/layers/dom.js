// Short ways to make elements.

// make("button", {className: "x", onclick}, child, "text") → the element; `aria`, `data` and `style` take objects.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  const { aria = {}, data = {}, style = {}, ...rest } = properties;
  Object.assign(element, rest);
  Object.assign(element.dataset, data);
  for (const [key, value] of Object.entries(aria)) element.setAttribute(key === "role" ? key : `aria-${key}`, value);
  for (const [key, value] of Object.entries(style)) element.style.setProperty(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Sets a property only where it differs, so that the caret of a field that is being typed in stays.
export function put(element, key, value) {
  if (element[key] !== value) element[key] = value;
}
