// Drawings by the server: begun, followed step by step, cancelled, and shown before and after.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Run } from "../store";
import { post, type JobEvent, type Recipe } from "../wire";
import { Message } from "./basics";

const page = crypto.randomUUID();
// Steps may be faster than anybody sees, and painting takes the processor from them: of the previews within so many
// milliseconds the last is shown.
const BETWEEN = 80;

export interface Drawn { src: string; final: boolean; strength?: number; remark?: string | null }
export interface Drawing {
  before?: Drawn; after: Drawn[]; busy: boolean; progress: string; error: string; firstPreview?: number;
  draw: (recipe: Recipe, strengths: number[], wait?: boolean) => void; cancel: () => void;
}

/** One drawing at a time of this part of the page. */
export function useDrawing(run: Run): Drawing {
  const [before, setBefore] = useState<Drawn>(), [after, setAfter] = useState<Drawn[]>([]);
  const [busy, setBusy] = useState(false), [progress, setProgress] = useState(""), [error, setError] = useState("");
  const source = useRef<EventSource | null>(null), job = useRef(""), turn = useRef(0);
  const stop = () => { source.current?.close(); source.current = null; };
  useEffect(() => () => { turn.current++; if (job.current) void post(`api/jobs/${job.current}/cancel`, {}).catch(() => undefined); stop(); }, []);

  const follow = (id: string, own: number) => {
    const events = (source.current = new EventSource(`api/jobs/${id}/events`));
    let told = 0, due = 0, last = 0, newest: JobEvent | null = null;
    const show = () => {
      due = 0;
      if (!newest || own !== turn.current) return;
      last = performance.now();
      setProgress(`${newest.which === "before" ? "without the edit" : "edited"}, step ${newest.step} of ${newest.of}`);
      place(newest, { src: `data:image/jpeg;base64,${newest.jpeg}`, final: false });
      newest = null;
    };
    events.onmessage = (message) => {
      if (own !== turn.current) { events.close(); return; }
      const said = JSON.parse(message.data) as JobEvent;
      told++;
      if (said.event === "loading") setProgress("loading the pipeline …");
      if (said.event === "step") {
        newest = said;
        due ||= window.setTimeout(show, Math.max(0, last + BETWEEN - performance.now()));
      } else { clearTimeout(due); due = 0; newest = null; }
      if (said.event === "image") place(said, { src: `data:image/png;base64,${said.png}`, final: true, strength: said.strength, remark: said.remark });
      if (said.event === "done" || said.event === "cancelled" || said.event === "failed") {
        events.close();
        job.current = "";
        setBusy(false);
        setProgress(said.event === "cancelled" ? "cancelled" : "");
        if (said.event === "failed") setError(said.message ?? "the drawing failed");
      }
    };
    events.onerror = () => {
      if (own !== turn.current) return;
      events.close();
      setBusy(false);
      setError(told ? "The connection to the server was lost. Is tide browse still running? Draw again." : "The server does not answer. Is tide browse still running?");
    };
  };
  const place = (said: JobEvent, drawn: Drawn) => {
    if (said.which === "before") setBefore(drawn);
    else setAfter((all) => { const next = [...all]; next[said.number ?? 0] = drawn; return next; });
  };
  return {
    before, after, busy, progress, error,
    draw: (recipe, strengths, wait = false) => {
      const own = ++turn.current;
      stop();
      setBusy(true);
      setError("");
      setProgress("waiting …");
      post<{ job: string; before: number }>("api/drawings", { run: run.info.id, recipe, strengths, replace: !wait, page }).then(
        (found) => {
          if (own !== turn.current) { void post(`api/jobs/${found.job}/cancel`, {}); return; }
          job.current = found.job;
          if (found.before) setProgress(`waiting for ${found.before} other drawing${found.before > 1 ? "s" : ""} …`);
          setAfter((all) => all.slice(0, strengths.length));
          follow(found.job, own);
        },
        (failed: Error) => { if (own === turn.current) { setBusy(false); setProgress(""); setError(failed.message); } },
      );
    },
    cancel: () => { if (job.current) void post(`api/jobs/${job.current}/cancel`, {}).catch((failed: Error) => setError(failed.message)); },
  };
}

/** Before and after, one over the other with a line that is moved, and the row of strengths. */
export function Comparison({ drawing, children }: { drawing: Drawing; children?: preact.ComponentChildren }) {
  const [at, setAt] = useState(50), [which, setWhich] = useState(0);
  const { before, after, progress, error, busy } = drawing, shown = after[Math.min(which, after.length - 1)];
  return (
    <div class="comparison" aria-busy={busy}>
      <p class="quiet progress" role="status">{progress}</p>
      {error && <Message kind="error">{error}</Message>}
      {(before || shown || children) && (
        <div class="pair">
          <div class="over">
            {before ? <img class="before" src={before.src} alt="the image without the edit" data-final={before.final ? "yes" : "no"} /> : <div class="blank">before</div>}
            {shown && <img class="after" src={shown.src} alt="the edited image" data-final={shown.final ? "yes" : "no"} style={{ clipPath: `inset(0 0 0 ${at}%)` }} />}
            {shown && <span class="line" style={{ left: `${at}%` }} />}
            {children}
          </div>
          {shown && <label class="slide"><span>before</span><input type="range" min="0" max="100" value={at} aria-label="how much of the unedited image is shown" onInput={(e) => setAt(Number(e.currentTarget.value))} /><span>after</span></label>}
        </div>
      )}
      {after.length > 1 && <div class="strengths" role="group" aria-label="strengths">{after.map((each, i) => each && (
        <button key={i} type="button" aria-pressed={which === i} onClick={() => setWhich(i)}><img src={each.src} alt={`strength ${each.strength ?? ""}`} /><span>{each.strength ?? "…"}</span></button>
      ))}</div>}
      {shown?.remark && <Message>{shown.remark}</Message>}
      {shown?.final && <p class="ways"><a class="button" download="before.png" href={before?.src}>Save before</a><a class="button" download="after.png" href={shown.src}>Save after</a></p>}
    </div>
  );
}
