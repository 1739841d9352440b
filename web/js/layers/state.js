// One value of a layer editor and what several views of it share: the text, its rows, the table of layers, the chosen chip.
// The value of a `set` editor (XTI Style Mix) is only the layers of one line, "IN08, MID", without a prompt.
import { parse, serialize } from "./prompts.js";
import { BASE, parkedText } from "./paint.js";
import { SD1 } from "./table.js";

const SET_TAIL = ": "; // makes a line of the value of a set

export class LayerState {
  // onCommit(text) is told when a person changed the value, not when it was set from outside.
  constructor(text, onCommit, isSet = false) {
    this.onCommit = onCommit;
    this.isSet = isSet;
    this.table = SD1;
    this.families = []; // [{name, table}] to choose from
    this.readFromModel = false; // whether the table is the model's own
    this.letters = null; // [{letter, title}] where a line calls a socket instead of holding a prompt
    this.locked = null; // {from} where the text comes from a connection
    this.asText = false;
    this.listeners = new Set();
    this.setText(text);
    this.chip = this.chips()[0] ?? BASE;
  }

  // The rows that are chips, in order; their place in this list gives their colour and their number.
  chips() {
    return this.rows.flatMap((row, i) => (row.kind === "line" || parkedText(row) !== null ? [i] : []));
  }

  setText(text) {
    this.text = text;
    this.rows = this.isSet ? parse(text + SET_TAIL, this.table) : parse(text, this.table);
    this.keepChip();
    this.changed();
  }

  setTable(table, readFromModel) {
    this.table = table;
    this.readFromModel = readFromModel;
    this.setText(this.text);
  }

  // A person's change of the picture.
  commitRows(rows) {
    if (rows === this.rows) return;
    const line = this.isSet && rows.find((row) => row.kind === "line");
    if (this.isSet && !line) return; // a set has at least one layer
    this.rows = this.isSet ? [line] : rows;
    this.text = this.isSet ? line.head : serialize(rows);
    this.keepChip();
    this.onCommit(this.text);
    this.changed();
  }

  commitText(text) {
    this.setText(text);
    this.onCommit(text);
  }

  choose(chip) {
    this.chip = chip;
    this.baseChosen = chip === BASE;
    this.changed();
  }

  keepChip() {
    const chips = this.chips();
    if (this.chip === undefined || this.baseChosen || chips.includes(this.chip)) return;
    this.chip = chips.findLast((chip) => chip < this.chip) ?? chips[0] ?? BASE;
  }

  changed() {
    for (const listener of this.listeners ?? []) listener();
  }
}
