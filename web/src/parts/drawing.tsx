// Drawings by the server: begun, followed step by step, cancelled, and shown before and after.

import { useEffect, useState } from "preact/hooks";
import type { Run } from "../store";
import { post, type JobEvent, type Recipe } from "../wire";
import { Message } from "./basics";
import { Clip } from "./clip";

// Not randomUUID: that is only for pages from this machine or over https.
const page = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
// Steps may be faster than anybody sees, and painting takes the processor from them where no GPU paints: the newest preview
// is shown when the last one is this many times its own painting's time ago, within limits in milliseconds.
const REST = 15, SOONEST = 80, LATEST = 400;

export interface Drawn { src: string; frames?: number; moving?: string; final: boolean; strength?: number; remark?: string | null }
/** One drawing at a time of a part of the page. What it tells often, only those who listen hear: the page around is large. */
export class Drawing {
  before?: Drawn;
  after: Drawn[] = [];
  busy = false;
  progress = "";
  error = "";
  private listeners = new Set<() => void>();
  private source: EventSource | null = null;
  private job = "";
  private turn = 0;
  private queued: [Recipe, number[]][] = [];

  constructor(private run: Run) {}

  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => { this.listeners.delete(listener); };
  }

  private set(changes: Partial<Pick<Drawing, "before" | "after" | "busy" | "progress" | "error">>): void {
    Object.assign(this, changes);
    this.listeners.forEach((each) => each());
  }

  async draw(recipe: Recipe, strengths: number[], wait = false): Promise<void> {
    if (wait && this.busy) { this.queued.push([recipe, strengths]); return; }
    if (!wait) this.queued = [];
    const own = ++this.turn;
    this.source?.close();
    // What was drawn before belongs to another recipe.
    this.set({ busy: true, error: "", progress: "waiting …", before: undefined, after: [] });
    try {
      const found = await post<{ job: string; before: number }>("api/drawings", { run: this.run.info.id, recipe, strengths, replace: !wait, page });
      if (own !== this.turn) { void post(`api/jobs/${found.job}/cancel`, {}); return; }
      this.job = found.job;
      if (found.before) this.set({ progress: `waiting for ${found.before} other drawing${found.before > 1 ? "s" : ""} …` });
      this.follow(own);
    } catch (failed) {
      if (own === this.turn) this.set({ busy: false, progress: "", error: (failed as Error).message });
    }
  }

  cancel(): void {
    this.queued = [];
    if (!this.job && this.busy) { this.turn++; this.set({ busy: false, progress: "cancelled" }); } // its number is on the way
    if (this.job) void post(`api/jobs/${this.job}/cancel`, {}).catch((failed: Error) => this.set({ error: failed.message }));
  }

  /** Ends what is drawn for a page that is left. */
  leave(): void {
    this.turn++;
    if (this.job) void post(`api/jobs/${this.job}/cancel`, {}).catch(() => undefined);
    this.source?.close();
  }

  private place(said: JobEvent, drawn: Drawn, progress = this.progress): void {
    if (said.which === "before") this.set({ before: drawn, progress });
    else { const after = [...this.after]; after[said.number ?? 0] = drawn; this.set({ after, progress }); }
  }

  private follow(own: number): void {
    const events = (this.source = new EventSource(`api/jobs/${this.job}/events`));
    let told = 0, due = 0, next = 0, newest: JobEvent | null = null;
    const show = () => {
      due = 0;
      if (!newest || own !== this.turn) return;
      const begun = performance.now();
      next = begun + LATEST;
      requestAnimationFrame(() => setTimeout(() => { next = begun + Math.min(LATEST, Math.max(SOONEST, REST * (performance.now() - begun))); }));
      this.place(newest, { src: `data:image/jpeg;base64,${newest.jpeg}`, frames: newest.frames, final: false }, `${newest.which === "before" ? "without the edit" : "edited"}, step ${newest.step} of ${newest.of}`);
      newest = null;
    };
    events.onmessage = (message) => {
      if (own !== this.turn) { events.close(); return; }
      const said = JSON.parse(message.data) as JobEvent;
      told++;
      if (said.event === "step") {
        newest = said;
        due ||= window.setTimeout(show, Math.max(0, next - performance.now()));
        return;
      }
      clearTimeout(due);
      due = 0;
      newest = null;
      if (said.event === "loading") this.set({ progress: "loading the pipeline …" });
      if (said.event === "image") this.place(said, { src: `data:image/png;base64,${said.png}`, frames: said.frames, moving: said.webp && `data:image/webp;base64,${said.webp}`, final: true, strength: said.strength, remark: said.remark });
      if (said.event === "done" || said.event === "cancelled" || said.event === "failed") {
        events.close();
        this.job = "";
        if (said.event !== "done") this.set({ ...(!this.before?.final && { before: undefined }), after: this.after.filter((each) => each?.final) });
        this.set({ busy: false, progress: said.event === "cancelled" ? "cancelled" : "", ...(said.event === "failed" && { error: said.message ?? "the drawing failed" }) });
        const next = this.queued.shift();
        if (next) void this.draw(...next, true);
      }
    };
    events.onerror = () => {
      if (own !== this.turn) return;
      events.close();
      this.set({ busy: false, progress: "", error: told ? "The connection to the server was lost. Is tide browse still running? Draw again." : "The server does not answer. Is tide browse still running?" });
    };
  }
}

/** A drawing for a part of the page, which is drawn again only when the drawing begins or ends. */
export function useDrawing(run: Run): Drawing {
  const [drawing] = useState(() => new Drawing(run)), [, setBusy] = useState(false);
  useEffect(() => {
    const stop = drawing.listen(() => setBusy(drawing.busy));
    return () => { stop(); drawing.leave(); };
  }, [drawing]);
  return drawing;
}

function Save({ name, drawn }: { name: string; drawn?: Drawn }) {
  return <a class="button" download={`${name}.${drawn?.moving ? "webp" : "png"}`} href={drawn?.moving ?? drawn?.src}>Save {name}</a>;
}

/** Before and after, one over the other with a line that is moved, and the row of strengths. */
export function Comparison({ drawing, children }: { drawing: Drawing; children?: preact.ComponentChildren }) {
  const [at, setAt] = useState(50), [which, setWhich] = useState(0);
  const [, again] = useState(0);
  useEffect(() => drawing.listen(() => again((n) => n + 1)), [drawing]);
  const { before, after, progress, error, busy } = drawing, shown = after[Math.min(which, after.length - 1)];
  return (
    <div class="comparison" aria-busy={busy}>
      <p class="quiet progress" role="status">{progress}</p>
      {error && <Message kind="error">{error}</Message>}
      {(before || shown || children) && (
        <div class="pair">
          <div class="over">
            {before ? <Clip class="before" src={before.src} frames={before.frames} alt="the image without the edit" data-final={before.final ? "yes" : "no"} /> : <div class="blank">before</div>}
            {shown && <Clip class="after" src={shown.src} frames={shown.frames} alt="the edited image" data-final={shown.final ? "yes" : "no"} style={{ clipPath: `inset(0 0 0 ${at}%)` }} />}
            {shown && <span class="line" style={{ left: `${at}%` }} />}
            {children}
          </div>
          {shown && <label class="slide"><span>before</span><input type="range" min="0" max="100" value={at} aria-label="how much of the unedited image is shown" onInput={(e) => setAt(Number(e.currentTarget.value))} /><span>after</span></label>}
        </div>
      )}
      {after.length > 1 && <div class="strengths" role="group" aria-label="strengths">{after.map((each, i) => each && (
        <button key={i} type="button" aria-pressed={which === i} onClick={() => setWhich(i)}><Clip src={each.src} frames={each.frames} alt={`strength ${each.strength ?? ""}`} /><span>{each.strength ?? "…"}</span></button>
      ))}</div>}
      {shown?.remark && <Message>{shown.remark}</Message>}
      {shown?.final && <p class="ways"><Save name="before" drawn={before} /><Save name="after" drawn={shown} /></p>}
    </div>
  );
}
