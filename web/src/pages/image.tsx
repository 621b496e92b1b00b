// One image: which latents fire in it, where, and at which step of the denoising.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { clock, framesOf, mapOf, sizeOf, useFrame } from "../clock";
import { veil } from "../heat";
import { count, latentLink, LatentName, Message, Profile, Thumbnail } from "../parts/basics";
import { go, href, params as paramsNow, useParams } from "../route";
import { useLoaded, useRun, type Run } from "../store";
import { json, packed } from "../wire";

const LISTED = 24, SHOWN = 32;

export function ImagePage({ run }: { run: Run }) {
  useRun(run);
  const params = useParams(), number = Number(params.image ?? 0), n = run.facts.nImages;
  const { value, error } = useLoaded(async () => {
    const [said, places] = await Promise.all([json<{ name: string; caption: string }>(`${run.base}/images/${number}.json`), packed(`${run.base}/images/${number}.bin`)]);
    return { ...said, latents: places.latents.values as Int32Array, heights: places.heights.values as Float32Array, shape: places.latents.shape };
  }, [run.info.id, number]);
  const link = (image: number) => href({ page: "image", run: run.info.id, image, latent: params.latent });
  return (
    <main id="main" class="image-page">
      <nav class="beside" aria-label="neighbouring images">
        {number > 0 && <a href={link(number - 1)} rel="prev">← image {number - 1}</a>}
        <label>Image <input type="number" min="0" max={n - 1} value={number} onChange={(e) => go(link(Math.max(0, Math.min(n - 1, Number(e.currentTarget.value) || 0))))} /> of {count(n)}</label>
        {number + 1 < n && <a href={link(number + 1)} rel="next">image {number + 1} →</a>}
      </nav>
      {!run.isStatic && <FindImages run={run} text={params.text ?? ""} />}
      <h1>{value ? value.caption || value.name : `Image ${number}`}</h1>
      {error && <Message kind="error">{error}</Message>}
      {value && <Within key={number} run={run} image={number} {...value} />}
    </main>
  );
}

/** Images whose name or caption holds words. */
function FindImages({ run, text }: { run: Run; text: string }) {
  const { value: found, error } = useLoaded(async () => (text ? (await run.search(text)).images : []), [run.info.id, text]);
  return (
    <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
      <label class="wide">Search captions<input id="search" type="search" value={text} placeholder="words of a caption  ( / )" onInput={(e) => go(href({ text: e.currentTarget.value || null }, true), true)} /></label>
      {error && <Message kind="error">{error}</Message>}
      {text && found && <p class="quiet" role="status">{found.length ? `${count(found.length)} images` : "No caption holds that."}</p>}
      {found && found.length > 0 && <div class="found">{found.slice(0, SHOWN).map((image) => <a key={image} href={href({ image }, true)}><Thumbnail run={run} image={image} size={56} label={`image ${image}`} /></a>)}</div>}
    </form>
  );
}

interface WithinProps { run: Run; image: number; name: string; latents: Int32Array; heights: Float32Array; shape: number[] }

function Within({ run, image, latents, heights, shape }: WithinProps) {
  const params = useParams(), { facts } = run, [steps, cells, k] = shape, [rows, columns] = sizeOf(facts);
  const order = useMemo(() => facts.timesteps.map((_, i) => i).sort((a, b) => facts.timesteps[b] - facts.timesteps[a]), [run]);
  const chosen = useMemo<ReadonlySet<number>>(() => new Set((params.places ?? "").split(",").filter(Boolean).map(Number)), [params.places]);
  const at = params.step === undefined ? -1 : Number(params.step);
  const picked = params.latent ? Number(params.latent) : null;
  const [hovered, setHovered] = useState<number | null>(null);
  const shownLatent = hovered ?? picked;

  // The latents of the chosen places (of all without a choice), summed over places, at each step.
  const ranked = useMemo(() => {
    const sums = new Map<number, Float32Array>();
    for (let s = 0; s < steps; s++) for (let c = 0; c < cells; c++) {
      if (chosen.size && !chosen.has(c)) continue;
      for (let i = 0; i < k; i++) {
        const p = (s * cells + c) * k + i, latent = latents[p];
        if (latent < 0) break;
        let row = sums.get(latent);
        if (!row) sums.set(latent, (row = new Float32Array(steps)));
        row[s] += heights[p];
      }
    }
    const places = chosen.size || cells;
    const total = (row: Float32Array) => (at < 0 ? row.reduce((a, b) => a + b, 0) / steps : row[order[at]]) / places;
    return [...sums].map(([latent, row]) => ({ latent, row, value: total(row) })).filter((each) => each.value > 0).sort((a, b) => b.value - a.value).slice(0, LISTED);
  }, [chosen, at, latents]);

  const heat = useMemo(() => {
    if (shownLatent === null) return null;
    const map = new Float32Array(cells);
    for (let s = 0; s < steps; s++) {
      if (at >= 0 && s !== order[at]) continue;
      for (let c = 0; c < cells; c++) for (let i = 0; i < k; i++) if (latents[(s * cells + c) * k + i] === shownLatent) map[c] += heights[(s * cells + c) * k + i];
    }
    const most = Math.max(...map);
    if (most === 0) return null; // it is nowhere among the strongest: a grey image would say that it is silent
    return map.map((v) => (255 * v) / most);
  }, [shownLatent, at, latents]);

  const choose = (places: number[]) => go(href({ places: places.length ? places.join(",") : null }, true), true);
  const toggle = (cell: number, on: boolean) => choose(on ? [...new Set([...now(), cell])] : now().filter((each) => each !== cell));
  return (
    <div class="within">
      <div>
        {picked !== null && <p class="chip">Where <a href={latentLink(run, picked)}><LatentName run={run} latent={picked} /></a> fires{hovered === null && !heat && `: never among the ${k} strongest of a place${at < 0 ? "" : " at this step"}`} <a class="button" href={href({ latent: null }, true)} aria-label="show the image without it">✕</a></p>}
        <Places run={run} image={image} heat={heat} rows={rows} columns={columns} chosen={chosen} toggle={toggle} />
        <label class="scrub">{at < 0 ? "all steps" : `t = ${Math.round(facts.timesteps[order[at]])}`}
          <input type="range" min="-1" max={steps - 1} value={at} aria-label="step of the denoising; the left end is all of them" aria-valuetext={at < 0 ? "all steps" : `timestep ${Math.round(facts.timesteps[order[at]])}`} onInput={(e) => { const v = Number(e.currentTarget.value); go(href({ step: v < 0 ? null : v }, true), true); }} /></label>
        <p class="ways"><button type="button" disabled={!chosen.size} onClick={() => choose([])}>Clear the places</button>
          <span class="quiet">{chosen.size ? `${chosen.size} of ${cells} places` : "Click a place, or paint a region."}{facts.frames && " Of a clip the places of the frame that is shown are chosen."}</span></p>
      </div>
      <section aria-labelledby="firing">
        <h2 id="firing">{chosen.size ? "What fires there" : "What fires in this image"}</h2>
        <p class="quiet">Of the {k} strongest latents of each place, by their mean value{at < 0 ? " over all steps" : " at this step"}. Point at one to see where it fires.</p>
        {ranked.length === 0 ? <Message>Nothing fires there.</Message> : (
          <ol class="firing">{ranked.map((each) => (
            <li key={each.latent} onPointerEnter={() => setHovered(each.latent)} onPointerLeave={() => setHovered(null)} onFocusIn={() => setHovered(each.latent)} onFocusOut={() => setHovered(null)} aria-current={picked === each.latent ? "true" : undefined}>
              <a href={latentLink(run, each.latent)}><LatentName run={run} latent={each.latent} /></a>
              <Profile values={each.row} timesteps={facts.timesteps} label={`latent ${each.latent} along the denoising`} height={22} />
              <span class="value">{each.value.toPrecision(3)}</span>
            </li>
          ))}</ol>
        )}
      </section>
    </div>
  );
}

/** The chosen places as they are at this moment: several are painted before the page is drawn again. */
const now = (): number[] => (paramsNow().places ?? "").split(",").filter(Boolean).map(Number);

interface PlacesProps { run: Run; image: number; heat: Float32Array | null; rows: number; columns: number; chosen: ReadonlySet<number>; toggle: (cell: number, on: boolean) => void }

/** The picture with its places, which are chosen by a click, by painting, or by the arrow keys and the space bar. */
function Places({ run, image, heat, rows, columns, chosen, toggle }: PlacesProps) {
  const { facts } = run, frames = framesOf(facts), frame = useFrame(frames);
  // The places of the frame that is shown are numbered from here; of an image from 0.
  const start = facts.frames ? facts.frames.map[frame] * rows * columns : 0;
  const canvas = useRef<HTMLCanvasElement>(null), painting = useRef<boolean | null>(null), [cursor, setCursor] = useState(0), [picture, setPicture] = useState<HTMLImageElement>();
  useEffect(() => { const found = new Image(); found.onload = () => setPicture(found); found.src = run.picture(image); }, [image]);
  useEffect(() => {
    const at = canvas.current!, side = at.clientWidth * (devicePixelRatio || 1);
    at.width = side;
    at.height = (side * facts.picture[0]) / facts.picture[1];
    const context = at.getContext("2d")!;
    if (!picture) return;
    const wide = picture.naturalWidth / frames;
    context.imageSmoothingEnabled = wide > side / 2;
    context.drawImage(picture, frame * wide, 0, wide, picture.naturalHeight, 0, 0, at.width, at.height);
    if (heat) veil(context, mapOf(facts, heat, frame), facts, 0, 0, at.width, at.height);
    const w = at.width / columns, h = at.height / rows;
    context.lineWidth = Math.max(2, side / 200);
    for (const place of chosen) {
      const cell = place - start;
      if (cell < 0 || cell >= rows * columns) continue;
      const x = (cell % columns) * w, y = Math.floor(cell / columns) * h;
      context.strokeStyle = "#000"; context.strokeRect(x + 1, y + 1, w - 2, h - 2);
      context.strokeStyle = "#ffbc2e"; context.strokeRect(x + 3, y + 3, w - 6, h - 6);
    }
    if (document.activeElement === at) { context.strokeStyle = "#fff"; context.setLineDash([4, 4]); context.strokeRect((cursor % columns) * w + 1, Math.floor(cursor / columns) * h + 1, w - 2, h - 2); context.setLineDash([]); }
  });
  const cellAt = (event: PointerEvent) => {
    const box = canvas.current!.getBoundingClientRect();
    const c = Math.floor(((event.clientX - box.left) / box.width) * columns), r = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return r >= 0 && r < rows && c >= 0 && c < columns ? r * columns + c : null;
  };
  const paint = (event: PointerEvent) => { const cell = cellAt(event); if (cell !== null && painting.current !== null) toggle(start + cell, painting.current); };
  const key = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (by) { event.preventDefault(); setCursor((was) => Math.max(0, Math.min(rows * columns - 1, was + by))); }
    if (event.key === " " || event.key === "Enter") { event.preventDefault(); toggle(start + cursor, !chosen.has(start + cursor)); }
  };
  return (
    <canvas ref={canvas} class="places" tabIndex={0} role="application" aria-label={`the image with ${rows} by ${columns} places; arrow keys move, space chooses; row ${Math.floor(cursor / columns) + 1}, column ${(cursor % columns) + 1}`}
      onPointerDown={(e) => { const cell = cellAt(e); if (cell === null) return; if (frames > 1) clock.play(false); painting.current = !chosen.has(start + cell); (e.currentTarget as Element).setPointerCapture(e.pointerId); paint(e); }}
      onPointerMove={paint} onPointerUp={() => { painting.current = null; }} onPointerCancel={() => { painting.current = null; }} onKeyDown={key} onFocus={() => setCursor((c) => c)} />
  );
}
