// A prompt, a stack of edits, and the image before and after.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { latentLink, Message, Range } from "../parts/basics";
import { Comparison, useDrawing } from "../parts/drawing";
import { go, href, useParams } from "../route";
import { useLoaded, useRun, type Run } from "../store";
import { json, post, type Change, type Recipe, type SavedRecipe, type Where } from "../wire";

const ROW = [0.5, 1, 1.5, 2];
const OF_CONCEPT = 3;
// Of a latent's strongest value on the index: all of it, added everywhere, often breaks the image.
export const ADDED = 0.5;

function recipeOf(text: string | undefined, run: Run): Recipe {
  const plain: Recipe = { prompt: run.facts.pipeline === "scenes" ? "a plain new red house, facing left, near, on grass, with a shadow" : "", seed: 0, n_steps: 20, guidance_scale: run.facts.pipeline === "scenes" ? 2 : 4.5, changes: [] };
  if (!text) return plain;
  try { return { ...plain, ...(JSON.parse(text) as Partial<Recipe>) }; } catch { return plain; }
}

export function Steer({ run }: { run: Run }) {
  useRun(run);
  const params = useParams(), recipe = useMemo(() => recipeOf(params.recipe, run), [params.recipe, run]);
  const drawing = useDrawing(run), row = params.row === "1", wait = params.wait === "1";
  const [painting, setPainting] = useState<number | null>(null);
  // What is typed is in the address at once, so that a reload, a link and the back button keep it.
  // The latest recipe and not that of a rendering: names are looked up meanwhile, and others may have typed on.
  const latest = useRef(recipe);
  latest.current = recipe;
  const set = (changes: Partial<Recipe>) => { latest.current = { ...latest.current, ...changes }; go(href({ recipe: JSON.stringify(latest.current) }, true), true); };
  const setChange = (i: number, change: Partial<Change>) => set({ changes: latest.current.changes.map((each, j) => (j === i ? { ...each, ...change } : each)) });
  const isStill = (i: number, change: Change) => latest.current.changes[i]?.latents.join() === change.latents.join();
  const draw = () => void drawing.draw(latest.current, row ? ROW : [1], wait);
  useEffect(() => {
    const enter = (event: KeyboardEvent) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); draw(); } if (event.key === "Escape" && drawing.busy) drawing.cancel(); };
    addEventListener("keydown", enter);
    return () => removeEventListener("keydown", enter);
  });
  if (!run.info.steers) return <main id="main"><h1>Steer</h1><Message>This run cannot steer here: {run.isStatic ? "this is a copy without a model" : "its checkpoint or its pipeline is not loaded"}. Start tide browse with the folder of its checkpoint.</Message></main>;
  return (
    <main id="main" class="steer">
      <h1>Steer</h1>
      <form onSubmit={(e) => { e.preventDefault(); draw(); }}>
        <label class="wide">Prompt<textarea rows={2} maxLength={10000} value={recipe.prompt} onInput={(e) => set({ prompt: e.currentTarget.value })} /></label>
        <div class="row">
          <label>Seed<input type="number" min="0" max="4294967295" step="1" value={recipe.seed} onChange={(e) => set({ seed: Math.max(0, Math.trunc(Number(e.currentTarget.value) || 0)) })} /></label>
          <label>Steps<input type="number" min="1" max="200" step="1" value={recipe.n_steps} onChange={(e) => set({ n_steps: Math.max(1, Math.trunc(Number(e.currentTarget.value) || 1)) })} /></label>
          <label>Guidance<input type="number" min="0" max="30" step="0.1" value={recipe.guidance_scale} onChange={(e) => set({ guidance_scale: Number(e.currentTarget.value) || 0 })} /></label>
        </div>
        <h2>Edits</h2>
        {recipe.changes.length === 0 && <p class="quiet">None yet: the image is drawn as it is. Add a latent by its number, or a concept by its name.</p>}
        <ol class="edits">{recipe.changes.map((change, i) => (
          <Edit key={i} run={run} change={change} painting={painting === i} onPaint={() => setPainting(painting === i ? null : i)} onChange={(each) => { if (isStill(i, change)) setChange(i, each); }}
            onRemove={() => { setPainting(null); set({ changes: latest.current.changes.filter((_, j) => j !== i) }); }} />
        ))}</ol>
        <Add run={run} onAdd={(added) => set({ changes: [...latest.current.changes, ...added] })} />
        <p class="ways">
          <button type="submit" class="primary" disabled={!recipe.prompt.trim()}>Draw</button>
          <button type="button" disabled={!drawing.busy} onClick={() => drawing.cancel()}>Cancel</button>
          <label class="check"><input type="checkbox" checked={row} onChange={(e) => go(href({ row: e.currentTarget.checked ? 1 : null }, true), true)} />a row of strengths</label>
          <label class="check"><input type="checkbox" checked={wait} onChange={(e) => go(href({ wait: e.currentTarget.checked ? 1 : null }, true), true)} />wait for earlier drawings</label>
        </p>
        <Recipes run={run} recipe={recipe} onOpen={(opened) => set(opened)} />
      </form>
      <div class="result">
        <Comparison drawing={drawing}>
          {painting !== null && recipe.changes[painting] && <Mask grid={run.facts.grid} tokens={recipe.changes[painting].tokens ?? null} onChange={(tokens) => setChange(painting, { tokens })} />}
        </Comparison>
        {painting !== null && <p class="quiet">Paint where edit {painting + 1} is to act. Nothing painted is no mask.{run.facts.frames && " A mask acts in all frames of the clip."}</p>}
      </div>
    </main>
  );
}

interface EditProps { run: Run; change: Change; painting: boolean; onPaint: () => void; onChange: (change: Partial<Change>) => void; onRemove: () => void }

function Edit({ run, change, painting, onPaint, onChange, onRemove }: EditProps) {
  const strongest = Math.max(1e-6, ...change.latents.map((latent) => run.columns.strongest[latent] || 0));
  const [low, high, step] = change.how === "scale" ? [-2, 8, 0.1] : [-2 * strongest, 4 * strongest, Number((strongest / 20).toPrecision(2))];
  return (
    <li class="edit">
      <div class="edit-head">
        {change.latents.map((latent) => <a key={latent} href={latentLink(run, latent)}>{run.nameOf(latent) ?? "latent"} <span class="number">{latent}</span></a>)}
        <button type="button" class="plain" onClick={onRemove} aria-label={`remove the edit of latent ${change.latents.join(", ")}`}>✕</button>
      </div>
      <div class="row">
        <label>Do<select value={change.how} onChange={(e) => onChange(e.currentTarget.value === "add" ? { how: "add", by: Number((ADDED * strongest).toPrecision(3)) } : { how: "scale", by: 0 })}><option value="scale">multiply by</option><option value="add">add, where it is off, too</option></select></label>
        <label class="strength">Strength<input type="range" min={low} max={high} step={step} value={change.by} onInput={(e) => onChange({ by: Number(e.currentTarget.value) })} /></label>
        <label class="visually-hidden-label"><span class="visually-hidden">Strength as a number</span><input type="number" step="any" value={change.by} onChange={(e) => onChange({ by: Number(e.currentTarget.value) || 0 })} /></label>
      </div>
      <div class="row">
        <Range label="Steps" value={change.steps ?? [0, 1]} onInput={(value) => onChange({ steps: value[0] === 0 && value[1] === 1 ? null : value })} />
        <button type="button" aria-pressed={painting} onClick={onPaint}>{painting ? "Done" : change.tokens?.length ? `Mask: ${change.tokens.length / (run.facts.grid.length > 2 ? run.facts.grid[0] : 1)} places` : "Paint a mask"}</button>
        {change.tokens && <button type="button" class="plain" onClick={() => onChange({ tokens: null })}>no mask</button>}
      </div>
      <Firing run={run} where={change.where ?? null} onChange={(where) => onChange({ where })} />
    </li>
  );
}

/** Latents by a number, the best of a concept, or the one of a name. */
async function latentsOf(run: Run, asked: string): Promise<number[]> {
  if (/^\d+$/.test(asked)) {
    if (Number(asked) >= run.facts.nLatents) throw new Error(`There is no latent ${asked}; there are 0 to ${run.facts.nLatents - 1}.`);
    return [Number(asked)];
  }
  const place = run.facts.concepts.findIndex((each) => each.concept === asked), { concept: of, auroc } = run.columns;
  const best = place < 0 ? [] : [...of.keys()].filter((i) => of[i] === place).sort((a, b) => auroc[b] - auroc[a]).slice(0, OF_CONCEPT);
  const found = best.length ? best : (await run.search(asked)).latents.slice(0, 1);
  if (!found.length) throw new Error(`No latent is called “${asked}”. Look for one on the page of all latents.`);
  return found;
}

const wholeNumber = (text: string) => Math.max(0, Math.trunc(Number(text) || 0));
/** 0 to 1; an empty field is the default, 1. */
const shareOf = (text: string) => text === "" ? 1 : Math.min(1, Math.max(0, Number(text) || 0));

/** The latents in whose places an edit acts, if any. */
function Firing({ run, where, onChange }: { run: Run; where: Where | null; onChange: (where: Where | null) => void }) {
  const [error, setError] = useState(""), questions = useRef(0);
  const set = async (text: string) => {
    const question = ++questions.current;
    const asked = text.split(",").map((word) => word.trim()).filter(Boolean);
    try {
      const latents = (await Promise.all(asked.map((each) => latentsOf(run, each)))).flat();
      if (question !== questions.current) return;
      setError("");
      onChange(latents.length ? { ...where, latents: [...new Set(latents)] } : null);
    } catch (failed) { setError((failed as Error).message); }
  };
  return (
    <div class="row">
      <label>Only where these fire<input list="concept-list" value={where?.latents.join(", ") ?? ""} placeholder="12, house; empty: everywhere" onChange={(e) => void set(e.currentTarget.value)} onKeyDown={(e) => { if (e.key === "Enter" && !e.ctrlKey && !e.metaKey) { e.preventDefault(); void set(e.currentTarget.value); } }} /></label>
      {where && <label>Their sum above<input type="number" step="any" value={where.threshold ?? 0} onChange={(e) => onChange({ ...where, threshold: Number(e.currentTarget.value) || 0 })} /></label>}
      {where && <label>Grow by, places<input type="number" min="0" step="1" value={where.grow ?? 0} onChange={(e) => onChange({ ...where, grow: wholeNumber(e.currentTarget.value) })} /></label>}
      {where && <label>Average over, places<input type="number" min="0" step="1" value={where.smooth ?? 0} onChange={(e) => onChange({ ...where, smooth: wholeNumber(e.currentTarget.value) })} /></label>}
      {where && <label>Stay on down to, share<input type="number" min="0" max="1" step="0.1" value={where.hold ?? 1} onChange={(e) => onChange({ ...where, hold: shareOf(e.currentTarget.value) })} /></label>}
      {error && <Message kind="error">{error}</Message>}
    </div>
  );
}

function Add({ run, onAdd }: { run: Run; onAdd: (changes: Change[]) => void }) {
  const [text, setText] = useState(""), [error, setError] = useState("");
  const add = async () => {
    const asked = text.trim();
    if (!asked) return;
    try {
      const latents = await latentsOf(run, asked);
      setError("");
      setText("");
      onAdd(latents.map((latent) => ({ latents: [latent], how: "add", by: Number((ADDED * (run.columns.strongest[latent] || 1)).toPrecision(3)) })));
    } catch (failed) { setError((failed as Error).message); }
  };
  return (
    <div class="row add">
      <label>Add a latent or a concept<input list="concept-list" value={text} placeholder="1120, or red" onInput={(e) => setText(e.currentTarget.value)} onKeyDown={(e) => { if (e.key === "Enter" && !e.ctrlKey && !e.metaKey) { e.preventDefault(); void add(); } }} /></label>
      <datalist id="concept-list">{run.facts.concepts.map((each) => <option key={each.concept} value={each.concept}>{each.level}</option>)}</datalist>
      <button type="button" onClick={() => void add()}>Add</button>
      {error && <Message kind="error">{error}</Message>}
    </div>
  );
}

/** The tokens of an edit, painted over the image. */
function Mask({ grid, tokens: all, onChange: change }: { grid: number[]; tokens: number[] | null; onChange: (tokens: number[] | null) => void }) {
  const [rows, columns] = grid.slice(-2), frames = grid.length > 2 ? grid[0] : 1, places = rows * columns;
  // Of a clip what is painted stands for these places of every frame.
  const tokens = useMemo(() => (frames === 1 ? all : all && [...new Set(all.map((token) => token % places))]), [all, frames, places]);
  const onChange = (painted: number[] | null) => change(painted && Array.from({ length: frames }, (_, frame) => painted.map((token) => frame * places + token)).flat());
  const box = useRef<HTMLDivElement>(null), on = useRef<boolean | null>(null), chosen = useRef(new Set(tokens ?? []));
  const [cursor, setCursor] = useState(0);
  chosen.current = new Set(tokens ?? []);
  const put = (token: number, how: boolean) => { if (how) chosen.current.add(token); else chosen.current.delete(token); onChange(chosen.current.size ? [...chosen.current].sort((a, b) => a - b) : null); };
  const at = (event: PointerEvent) => {
    const r = box.current!.getBoundingClientRect(), x = Math.floor(((event.clientX - r.left) / r.width) * columns), y = Math.floor(((event.clientY - r.top) / r.height) * rows);
    return x >= 0 && y >= 0 && x < columns && y < rows ? y * columns + x : null;
  };
  const paint = (event: PointerEvent) => { const token = at(event); if (token !== null && on.current !== null && chosen.current.has(token) !== on.current) put(token, on.current); };
  const key = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (by) { event.preventDefault(); setCursor((was) => Math.max(0, Math.min(rows * columns - 1, was + by))); }
    if (event.key === " ") { event.preventDefault(); put(cursor, !chosen.current.has(cursor)); }
  };
  return (
    <div ref={box} class="mask" tabIndex={0} role="application" aria-label={`mask of ${rows} by ${columns} places, ${chosen.current.size} painted; arrow keys move, space paints; row ${Math.floor(cursor / columns) + 1}, column ${(cursor % columns) + 1}`}
      onPointerDown={(e) => { const token = at(e); if (token === null) return; on.current = !chosen.current.has(token); (e.currentTarget as Element).setPointerCapture(e.pointerId); paint(e); }}
      onPointerMove={paint} onPointerUp={() => { on.current = null; }} onPointerCancel={() => { on.current = null; }} onKeyDown={key}>
      <svg viewBox={`0 0 ${columns} ${rows}`} preserveAspectRatio="none" aria-hidden="true">
        {[...chosen.current].map((token) => <rect key={token} x={token % columns} y={Math.floor(token / columns)} width="1" height="1" />)}
        <rect class="cursor" x={cursor % columns} y={Math.floor(cursor / columns)} width="1" height="1" />
      </svg>
    </div>
  );
}

function Recipes({ run, recipe, onOpen }: { run: Run; recipe: Recipe; onOpen: (recipe: Recipe) => void }) {
  const [said, setSaid] = useState(""), [error, setError] = useState(""), [code, setCode] = useState(""), [again, setAgain] = useState(0);
  const { value: saved } = useLoaded(() => json<SavedRecipe[]>(`${run.base}/recipes`), [run.info.id, again]);
  const attempt = async (what: () => Promise<string>) => { try { setSaid(await what()); setError(""); } catch (failed) { setError((failed as Error).message); setSaid(""); } };
  const copy = (kind: "python" | "command") => attempt(async () => {
    const found = await post<Record<string, string>>(`${run.base}/code`, recipe);
    setCode(found[kind]);
    try { await navigator.clipboard.writeText(found[kind]); return "Copied."; } catch { return "Select the text below and copy it."; }
  });
  return (
    <details class="recipes">
      <summary>Recipe: copy, save, open</summary>
      <p class="ways">
        <button type="button" onClick={() => void copy("python")}>Copy as Python</button>
        <button type="button" onClick={() => void copy("command")}>Copy as a command</button>
      </p>
      {code && <pre tabIndex={0}><code>{code}</code></pre>}
      <div class="row">
        <label>Name<input id="recipe-name" maxLength={80} onKeyDown={(e) => { if (e.key === "Enter") { e.preventDefault(); document.getElementById("save-recipe")!.click(); } }} /></label>
        <button type="button" id="save-recipe" onClick={() => void attempt(async () => {
          const name = (document.getElementById("recipe-name") as HTMLInputElement).value.trim();
          if (!name) throw new Error("Give the recipe a name first.");
          const found = await post<{ path: string }>(`${run.base}/recipes/${encodeURIComponent(name)}`, recipe);
          setAgain((n) => n + 1);
          return `Saved as ${found.path}.`;
        })}>Save</button>
        {saved && saved.length > 0 && <label>Open<select value="" onChange={(e) => {
          const found = saved.find((each) => each.name === e.currentTarget.value);
          if (found?.recipe) onOpen(found.recipe); else if (found) setError(found.message ?? "It cannot be read.");
        }}><option value="">choose …</option>{saved.map((each) => <option key={each.name} value={each.name}>{each.name}</option>)}</select></label>}
      </div>
      <p role="status" class="quiet">{said}</p>
      {error && <Message kind="error">{error}</Message>}
    </details>
  );
}
