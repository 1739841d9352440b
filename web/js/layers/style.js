// The looks of the layer editor, in the colours of the user's theme.
const CSS = `
.gl-editor { container-type:inline-size; width:100%; box-sizing:border-box; font-size:12px; line-height:1.35; color:var(--input-text,#ddd); text-align:left; cursor:default; }
.gl-editor * { box-sizing:border-box; }
.gl-editor .gl-body { display:flex; flex-direction:column; gap:6px; padding:6px; border-radius:8px; background:var(--comfy-input-bg,#222);
  border:1px solid var(--border-color,#4e4e4e); }
.gl-editor.gl-scroll { overflow-y:auto; scrollbar-width:thin; }
.gl-editor :is(input,select,textarea,button) { font:inherit; color:inherit; margin:0; }
.gl-editor button { cursor:pointer; border:1px solid var(--border-color,#4e4e4e); border-radius:5px; background:var(--comfy-menu-bg,#333); padding:2px 7px; }
.gl-editor button:hover { border-color:currentColor; }
.gl-editor :is(button,.gl-cell,input,select,textarea):focus-visible { outline:2px solid var(--p-primary-color,#4a9eff); outline-offset:1px; }
.gl-editor select, .gl-editor input[type=text], .gl-editor input[type=number], .gl-editor textarea { min-width:0; border:1px solid var(--border-color,#4e4e4e);
  border-radius:5px; background:var(--comfy-menu-bg,#333); padding:3px 6px; }
.gl-editor input[type=range] { min-width:0; accent-color:var(--gl-colour,#4a9eff); cursor:pointer; }
.gl-row { display:flex; gap:6px; align-items:center; min-width:0; }
.gl-bar { justify-content:space-between; flex-wrap:wrap; }
.gl-bar select { max-width:170px; }
.gl-dim { color:var(--descrip-text,#999); font-size:11px; }
.gl-grow { flex:1 1 0; min-width:0; }
.gl-level { display:flex; justify-content:center; align-items:center; gap:3px; }
.gl-map { display:flex; flex-direction:column; gap:3px; padding:2px 0; touch-action:none; user-select:none; }
.gl-map.gl-column { display:grid; grid-auto-flow:column; gap:2px 4px; justify-content:center; }
.gl-side { display:flex; flex:0 1 auto; gap:3px; min-width:0; }
.gl-side:has(.gl-group) { flex-wrap:wrap; }
.gl-side.gl-up { justify-content:flex-end; }
.gl-size { flex:1 1 0; min-width:40px; text-align:center; font-size:10px; color:var(--descrip-text,#999);
  background:linear-gradient(var(--border-color,#4e4e4e),var(--border-color,#4e4e4e)) center / 100% 1px no-repeat; }
.gl-size span { background:var(--comfy-input-bg,#222); padding:0 4px; white-space:nowrap; }
.gl-bottom { gap:6px; position:relative; }
.gl-bottom > .gl-dim { position:absolute; left:calc(50% + 32px); font-size:10px; }
.gl-group { display:flex; flex-wrap:wrap; gap:2px; justify-content:center; align-content:center; max-width:91px; padding:1px; border-radius:4px; border:1px solid var(--border-color,#4e4e4e); }
.gl-group > .gl-dim { width:100%; text-align:center; font-size:9px; line-height:10px; }
.gl-cell { position:relative; height:28px; flex:0 1 48px; min-width:30px; width:48px; padding:0 4px 0 2px; border-radius:4px; border:1px solid var(--border-color,#4e4e4e); display:flex;
  align-items:center; justify-content:center; font-size:10.5px; cursor:pointer; background-color:var(--comfy-menu-bg,#333); overflow:hidden; }
.gl-column .gl-cell { height:19px; width:56px; }
.gl-group .gl-cell { flex:0 0 15px; height:15px; min-width:15px; width:15px; padding:0; font-size:8px; border-radius:2px; }
.gl-group .gl-cell > b { display:none; }
.gl-cell.gl-painted { font-weight:600; }
.gl-cell.gl-painted:not(.gl-always) { padding-bottom:5px; }
.gl-cell.gl-always { color:#111; border-color:rgba(0,0,0,.45); }
.gl-cell.gl-own { outline:1.5px solid var(--input-text,#ddd); outline-offset:-1px; }
.gl-cell:hover { filter:brightness(1.12); }
.gl-cell > b { position:absolute; right:2px; top:0; font-size:8px; line-height:10px; }
.gl-presets { flex-wrap:wrap; gap:4px; }
.gl-presets button { padding:1px 7px; }
.gl-presets input { width:60px; }
.gl-chip { display:flex; flex-direction:column; gap:3px; padding:4px; border-radius:6px; border:1px solid transparent; }
.gl-chip.gl-active { border-color:var(--gl-colour); background:color-mix(in srgb, var(--gl-colour) 12%, transparent); }
.gl-tag { flex:0 0 auto; width:22px; height:22px; padding:0 !important; border-radius:50% !important; border:2px solid transparent !important;
  background:var(--gl-colour) !important; color:#111 !important; font-weight:700 !important; }
.gl-tag.gl-small { width:17px; height:17px; font-size:10px; display:inline-flex; align-items:center; justify-content:center; }
.gl-active .gl-tag { border-color:var(--input-text,#ddd) !important; }
.gl-basechip .gl-tag, .gl-cell:not(.gl-painted) { background-image:repeating-linear-gradient(135deg, transparent 0 4px, color-mix(in srgb, var(--descrip-text,#999) 16%, transparent) 4px 5px) !important; }
.gl-basechip { --gl-colour:var(--comfy-menu-bg,#333); cursor:pointer; }
.gl-basechip .gl-tag { border-color:var(--border-color,#4e4e4e) !important; }
.gl-basechip.gl-active { border-color:var(--descrip-text,#999); }
.gl-basechip.gl-tag.gl-small { width:17px; height:17px; font-size:10px; display:inline-flex; align-items:center; justify-content:center; }
.gl-active .gl-tag { border-color:var(--input-text,#ddd) !important; }
.gl-icon { flex:0 0 auto; padding:1px 6px !important; background:transparent !important; border-color:transparent !important; color:var(--descrip-text,#999) !important; }
.gl-icon:hover { color:var(--input-text,#ddd) !important; }
.gl-detail { padding-left:28px; flex-wrap:wrap; gap:2px 7px; }
.gl-where { flex:1 1 56px; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; }
.gl-strength { display:flex; gap:4px; align-items:center; }
.gl-strength input[type=range] { width:48px; }
.gl-strength input[type=number] { width:44px; padding:1px 3px; }
.gl-time { display:flex; gap:4px; align-items:center; }
.gl-span { position:relative; width:64px; height:18px; }
.gl-span i { position:absolute; top:7px; height:4px; border-radius:2px; background:var(--gl-colour); }
.gl-span u { position:absolute; left:0; right:0; top:7px; height:4px; border-radius:2px; background:var(--border-color,#4e4e4e); }
.gl-span input { position:absolute; inset:0; width:100%; height:18px; appearance:none; background:transparent; pointer-events:none; }
.gl-span input::-webkit-slider-runnable-track { background:transparent; height:18px; }
.gl-span input::-moz-range-track { background:transparent; }
.gl-span input::-webkit-slider-thumb { appearance:none; pointer-events:auto; width:9px; height:16px; margin-top:1px; border-radius:3px; background:var(--gl-colour); border:1px solid rgba(0,0,0,.5); }
.gl-span input::-moz-range-thumb { pointer-events:auto; width:8px; height:14px; border-radius:3px; background:var(--gl-colour); border:1px solid rgba(0,0,0,.5); }
.gl-error { color:var(--error-text,#ff6b6b); font-size:11px; padding-left:28px; white-space:normal; overflow-wrap:anywhere; }
.gl-textbox + div { padding-top:4px; }
.gl-textbox + div .gl-error { padding-left:2px; }
.gl-wavy { text-decoration:underline wavy var(--error-text,#ff6b6b) 1px; text-underline-offset:2px; text-decoration-skip-ink:none; }
.gl-comment { font-style:italic; color:var(--descrip-text,#999); padding-left:6px; }
.gl-locked { border-left:3px solid #e69f00; padding:4px 8px; background:color-mix(in srgb, #e69f00 14%, transparent); border-radius:4px; }
.gl-editor.gl-readonly :is(.gl-presets,.gl-add,.gl-icon) { display:none; }
.gl-textbox { position:relative; }
.gl-textbox pre, .gl-textbox textarea { font:12px/1.6 ui-monospace,Menlo,Consolas,monospace !important; padding:5px 7px !important; margin:0; width:100%; white-space:pre-wrap; overflow-wrap:anywhere; border-width:1px; border-style:solid; }
.gl-textbox pre { position:absolute; inset:0; color:transparent; pointer-events:none; overflow:hidden; border-color:transparent; }
.gl-textbox textarea { display:block; resize:none; min-height:120px; overflow:hidden; }
@container (max-width: 360px) {
  .gl-level .gl-size { flex:1 1 8px; min-width:8px; overflow:hidden; }
  .gl-level .gl-size span { display:none; }
  .gl-cell { font-size:9px; padding:0 1px; }
  .gl-level { gap:2px; }
  .gl-side { gap:2px; }
}
`;

export function addStyle() {
  if (document.getElementById("guidance-lab-layer-style")) return;
  document.head.append(
    Object.assign(document.createElement("style"), { id: "guidance-lab-layer-style", textContent: CSS }),
  );
}

// Colours that stay apart for most colour-blind people (after Okabe and Ito), all light enough for black text.
const COLOURS = ["#e69f00", "#56b4e9", "#2fb58a", "#f0e442", "#e8743b", "#d78fb9", "#a99bff", "#9ccc65"];

export const colour = (chip) => COLOURS[chip % COLOURS.length];
