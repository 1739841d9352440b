// Which layers there are: the typical lists of the server, and the model's own list, which a run of the node tells.
import { api } from "../../../../scripts/api.js";
import { nodeAt } from "../live/memory.js";
import { SD1 } from "./table.js";

// Properties of a node, saved with the workflow: the recipe of the table that is drawn, and the one that its last run read.
export const PROPERTY = "guidance_lab_layers";
export const READ = "guidance_lab_layers_read";
const typical = [{ name: "SD1.x", plain: SD1, single: SD1 }];
const byRecipe = new Map();

async function ask(query) {
  const answer = await api.fetchApi(`/guidance_lab/layers${query}`);
  if (!answer.ok) throw new Error(`${answer.status}`);
  return answer.json();
}

// [{name, plain, single}]: the typical families; SD1.x alone where the server does not answer.
export const families = () => typical;

export async function loadFamilies() {
  try {
    typical.splice(0, typical.length, ...(await ask("")).families);
  } catch (error) {
    console.warn("Guidance Lab: the server gives no list of layers, SD1.x is drawn:", error.message);
  }
}

// The tables of a recipe, {name, plain, single}, or null where the server cannot read it.
export async function tablesOf(recipe) {
  if (!byRecipe.has(recipe)) {
    byRecipe.set(
      recipe,
      ask(`?recipe=${encodeURIComponent(recipe)}`).catch(() => null),
    );
  }
  return byRecipe.get(recipe);
}

// tell(node, recipe) after each run of a node whose model's layers became known.
export function onRun(hasEditor, tell) {
  api.addEventListener("guidance_lab.layers", ({ detail }) => {
    byRecipe.set(detail.recipe, Promise.resolve(detail.tables));
    const node = nodeAt(detail.node);
    if (node) tell(node, detail.recipe);
  });
  // A node whose result is still known does not run again, and so tells nothing.
  api.addEventListener("execution_cached", async ({ detail }) => {
    for (const id of detail.nodes ?? []) {
      const node = nodeAt(id);
      if (!node || !hasEditor(node) || node.properties[READ]) continue;
      const { recipe } = await ask(`?node=${encodeURIComponent(id)}`).catch(() => ({}));
      if (recipe) tell(node, recipe);
    }
  });
}
