// Small things that every page uses.

import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { clock, framesOf, mapOf, useFrame } from "../clock";
import { veil } from "../heat";
import { href } from "../route";
import { useRun, type Run } from "../store";

export const percent = (share: number): string => (share === 0 ? "0 %" : share < 0.0001 ? "< 0.01 %" : `${(100 * share).toPrecision(share < 0.0995 ? 2 : 3)} %`);
export const count = (n: number): string => n.toLocaleString("en");
export const decimals = (x: number | null | undefined, n = 2): string => (x === null || x === undefined || Number.isNaN(x) ? "–" : x.toFixed(n));

export function Message({ kind = "note", children }: { kind?: "note" | "error"; children: ComponentChildren }) {
  return <p class={`message ${kind}`} role={kind === "error" ? "alert" : "status"}>{children}</p>;
}

export const latentLink = (run: Run, latent: number): string => href({ page: "latent", run: run.info.id, latent });
export const imageLink = (run: Run, image: number, latent?: number): string => href({ page: "image", run: run.info.id, image, latent });

export function LatentName({ run, latent }: { run: Run; latent: number }) {
  const name = run.nameOf(latent);
  return <span class="latent-name">{name ? <b>{name}</b> : <span class="quiet">unnamed</span>} <span class="number">{latent}</span></span>;
}

/** A thumbnail with the veil of a latent's map, or without. */
export function Thumbnail({ run, image, map, size, label }: { run: Run; image: number; map?: Uint8Array; size: number; label: string }) {
  useRun(run);
  const frame = useFrame(framesOf(run.facts));
  const canvas = useRef<HTMLCanvasElement>(null);
  const height = Math.round(size * run.sheets.shape);
  useEffect(() => {
    const at = canvas.current!, ratio = devicePixelRatio || 1;
    at.width = size * ratio;
    at.height = height * ratio;
    const context = at.getContext("2d")!;
    context.imageSmoothingQuality = "high";
    if (run.sheets.draw(context, image, 0, 0, at.width, at.height) && map) veil(context, mapOf(run.facts, map, frame), run.facts, 0, 0, at.width, at.height);
  });
  return <canvas ref={canvas} class="thumbnail" style={{ width: `${size}px`, height: `${height}px` }} role="img" aria-label={label} />;
}

/** A picture in full, with a veil that a pointer, or the focus of its link, lifts. */
export function Picture({ run, image, map, size, label }: { run: Run; image: number; map?: Uint8Array; size: number; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const height = Math.round((size * run.facts.picture[0]) / run.facts.picture[1]);
  useEffect(() => {
    let here = true, veiled = true;
    const frames = framesOf(run.facts);
    const picture = new Image();
    picture.src = run.picture(image);
    const draw = () => {
      const at = canvas.current;
      if (!here || !at || !picture.complete || !picture.naturalWidth) return;
      const ratio = devicePixelRatio || 1;
      at.width = size * ratio;
      at.height = height * ratio;
      const context = at.getContext("2d")!;
      const frame = clock.tick % frames, width = picture.naturalWidth / frames;
      context.imageSmoothingEnabled = width > at.width / 2;
      context.drawImage(picture, frame * width, 0, width, picture.naturalHeight, 0, 0, at.width, at.height);
      if (map && veiled) veil(context, mapOf(run.facts, map, frame), run.facts, 0, 0, at.width, at.height);
    };
    picture.onload = draw;
    const stop = frames > 1 ? clock.listen(draw) : () => {};
    const at = canvas.current!;
    const lift = () => { veiled = false; draw(); }, lay = () => { veiled = true; draw(); };
    const link = at.closest("a"), heard: [EventTarget | null, string, () => void][] = [[at, "pointerenter", lift], [at, "pointerleave", lay], [link, "focus", lift], [link, "blur", lay]];
    for (const [target, name, listener] of heard) target?.addEventListener(name, listener);
    return () => { here = false; stop(); for (const [target, name, listener] of heard) target?.removeEventListener(name, listener); };
  }, [run, image, map, size]);
  return <canvas ref={canvas} class="picture" style={{ width: `${size}px`, height: `${height}px` }} role="img" aria-label={label} />;
}

/** Values over the denoising, from noise on the left to the image on the right. */
export function Profile({ values, timesteps, label, height = 28, axis = false }: { values: ArrayLike<number>; timesteps: number[]; label: string; height?: number; axis?: boolean }) {
  const n = values.length, most = Math.max(1e-12, ...Array.from(values));
  const order = timesteps.map((_, i) => i).sort((a, b) => timesteps[b] - timesteps[a]);
  // A card has dozens of neighbours: there the bars are one shape.
  const shape = () => order.map((i, place) => { const h = Math.max(values[i] > 0 ? 1.5 : 0, (values[i] / most) * 100); return `M${(place / n) * 100 + 0.5} 100v${-h}h${100 / n - 1}v${h}z`; }).join("");
  const bars = !axis ? <path d={shape()} /> : order.map((i, place) => {
    const h = Math.max(values[i] > 0 ? 1.5 : 0, (values[i] / most) * 100);
    return <rect key={place} x={(place / n) * 100 + 0.5} y={100 - h} width={100 / n - 1} height={h}><title>{`timestep ${Math.round(timesteps[i])}: ${values[i].toPrecision(3)}`}</title></rect>;
  });
  return (
    <figure class="profile">
      <svg viewBox="0 0 100 100" preserveAspectRatio="none" style={{ height: `${height}px` }} role="img" aria-label={label}>{bars}</svg>
      {axis && <figcaption><span>noise (t {Math.round(timesteps[order[0]])})</span><span>image (t {Math.round(timesteps[order[n - 1]])})</span></figcaption>}
    </figure>
  );
}

/** Values in each frame of tokens of clips, from the first on the left. */
export function Along({ values, said, write, height = 90 }: { values: number[]; said: string; write: (value: number) => string; height?: number }) {
  const n = values.length, most = Math.max(1e-12, ...values);
  return (
    <figure class="profile">
      <svg viewBox="0 0 100 100" preserveAspectRatio="none" style={{ height: `${height}px` }} role="img" aria-label={`${said}, frame by frame: ${values.map(write).join(", ")}`}>{values.map((value, i) => {
        const h = Math.max(value > 0 ? 1.5 : 0, (value / most) * 100);
        return <rect key={i} x={(i / n) * 100 + 0.5} y={100 - h} width={100 / n - 1} height={h}><title>{`frame ${i + 1}: ${write(value)}`}</title></rect>;
      })}</svg>
      <figcaption><span>{said}, first frame</span><span>last of {n} frames of tokens</span></figcaption>
    </figure>
  );
}

/** A pair of range inputs that choose a part of the run. */
export function Range({ label, value, onInput }: { label: string; value: [number, number]; onInput: (value: [number, number]) => void}) {
  const [low, high] = value;
  return (
    <fieldset class="range">
      <legend>{label} {Math.round(100 * low)}–{Math.round(100 * high)} %</legend>
      <input type="range" min="0" max="0.95" step="0.05" value={low} aria-label={`${label}, from`} onInput={(e) => { const v = Number(e.currentTarget.value); onInput([v, Math.max(high, Math.round(100 * v + 5) / 100)]); }} />
      <input type="range" min="0.05" max="1" step="0.05" value={high} aria-label={`${label}, to`} onInput={(e) => { const v = Number(e.currentTarget.value); onInput([Math.min(low, Math.round(100 * v - 5) / 100), v]); }} />
    </fieldset>
  );
}
