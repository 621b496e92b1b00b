// The frame of the page: which run, which page.

import { render } from "preact";
import { useEffect, useErrorBoundary, useState } from "preact/hooks";
import { count, Message } from "./parts/basics";
import { Compare } from "./pages/compare";
import { ImagePage } from "./pages/image";
import { LatentPage } from "./pages/latent";
import { Latents } from "./pages/latents";
import { Start } from "./pages/start";
import { Steer } from "./pages/steer";
import { go, href, useParams } from "./route";
import { Player } from "./parts/clip";
import { forget, openRun, useLoaded, type Run } from "./store";
import { json, type RunInfo, type RunList } from "./wire";

const PAGES: Record<string, string> = { start: "Start", latents: "Latents", image: "Images", compare: "Compare", steer: "Steer" };

function App() {
  const params = useParams(), [list, setList] = useState<RunList>(), [error, setError] = useState("");
  const read = () => json<RunList>("api/runs.json").then((found) => { setList(found); setError(""); }, (failed: Error) => setError(failed.message));
  useEffect(() => { void read(); }, []);
  useEffect(() => {
    // While an index is being made, the page asks how far it is.
    if (!list?.runs.some((each) => each.index.state === "building" || each.index.state === "waiting")) return;
    const timer = setTimeout(read, 700);
    return () => clearTimeout(timer);
  }, [list]);
  useEffect(() => {
    const find = (event: KeyboardEvent) => {
      if (event.key !== "/" || (event.target as Element).closest("input, textarea, select")) return;
      event.preventDefault();
      const field = document.getElementById("search");
      if (field) field.focus(); else { go(href({ page: "latents", run: params.run })); requestAnimationFrame(() => document.getElementById("search")?.focus()); }
    };
    addEventListener("keydown", find);
    return () => removeEventListener("keydown", find);
  });
  const page = params.page ?? "start", info = list?.runs.find((each) => each.id === params.run) ?? list?.runs[0];
  const unknown = list && params.run && !list.runs.some((each) => each.id === params.run);
  useEffect(() => { document.title = `${page === "latent" ? `Latent ${params.latent}` : PAGES[page] ?? "TIDE"}${info ? ` · ${info.name}` : ""} · TIDE`; });
  return (
    <>
      <a class="skip" href="#main">Skip to the content</a>
      <header>
        <a class="brand" href={href({ run: info?.id })}>TIDE</a>
        {list && list.runs.length > 1 && <label class="runs"><span class="visually-hidden">Run</span><select value={info?.id} onChange={(e) => go(href({ page: page === "latent" ? "latents" : page, run: e.currentTarget.value }))}>{list.runs.map((each) => <option key={each.id} value={each.id}>{nameOf(each)}</option>)}</select></label>}
        <nav aria-label="pages">{Object.entries(PAGES).map(([name, said]) => (
          (name !== "steer" || info?.steers) && (name !== "compare" || (list && !list.static && list.runs.length > 1)) && <a key={name} href={href({ page: name, run: info?.id })} aria-current={page === name || (page === "latent" && name === "latents") ? "page" : undefined}>{said}</a>
        ))}</nav>
      </header>
      {error ? <main id="main"><Message kind="error">{error}</Message><button type="button" onClick={() => { forget(); void read(); }}>Try again</button></main>
        : unknown ? <main id="main"><Message kind="error">There is no run “{params.run}” here.</Message></main>
        : info && list ? <>{info.index.state === "ready" && info.index.message && <div class="banner"><Message kind="error">{info.index.message}</Message></div>}<Shown key={info.id} info={info} list={list} page={page} /></> : <main id="main"><p class="quiet">Loading …</p></main>}
    </>
  );
}

const nameOf = (info: RunInfo): string => `${info.name}${info.block === undefined || info.block === null ? "" : ` · block ${info.block}`}${info.kind ? ` · ${info.kind}` : ""}`;

function Shown({ info, list, page }: { info: RunInfo; list: RunList; page: string }) {
  const [broken, mend] = useErrorBoundary();
  const ready = info.index.state === "ready", [again, setAgain] = useState(0);
  const { value: run, error } = useLoaded(async () => (ready ? openRun(info, list.static) : null), [info.id, ready, again]);
  if (broken) return <main id="main"><h1>{info.name}</h1><Message kind="error">This page could not be shown ({(broken as Error).message}). The address may be damaged.</Message><p class="ways"><a class="button" href={href({ run: info.id })} onClick={mend}>Back to the start</a></p></main>;
  if (!ready) return <Making info={info} />;
  if (error) return <main id="main"><h1>{info.name}</h1><Message kind="error">{error}</Message><button type="button" onClick={() => { forget(); setAgain((n) => n + 1); }}>Try again</button></main>;
  if (!run) return <main id="main"><p class="quiet">Opening …</p></main>;
  const { frames } = run.facts;
  return <>{frames && <Player frames={frames.shown.length} total={frames.total} />}<Page run={run} list={list} page={page} /></>;
}

function Page({ run, list, page }: { run: Run; list: RunList; page: string }) {
  switch (page) {
    case "latents": return <Latents run={run} />;
    case "latent": return <LatentPage run={run} />;
    case "image": return <ImagePage run={run} />;
    case "compare": return <Compare run={run} list={list} />;
    case "steer": return <Steer run={run} />;
    default: return <Start run={run} />;
  }
}

function Making({ info }: { info: RunInfo }) {
  const { state, stage, done, total, message } = info.index;
  return (
    <main id="main">
      <h1>{info.name}</h1>
      {state === "failed" ? <Message kind="error">{message}</Message>
        : state === "missing" ? <Message>{message || "This run has no index. Start tide browse with --data to make one, or use tide atlas --index."}</Message> : (
          <>
            <p>An index is being made, once. {message}</p>
            <progress max={total || 1} value={done} aria-label="progress" />
            <p class="quiet" role="status">{state === "waiting" ? "waiting" : `${stage}: ${count(done)} of ${count(total)}`}</p>
          </>
        )}
    </main>
  );
}

const frame = document.getElementById("app")!;
frame.textContent = "";
render(<App />, frame);
