// The card of a latent: its name, its top images with where it fires in them, and when it fires.

import { useEffect, useRef } from "preact/hooks";
import { framesOf, mapOf, useFrame } from "../clock";
import { veil } from "../heat";
import type { Run } from "../store";
import type { Card as Data } from "../wire";
import { decimals, latentLink, LatentName, percent, Profile } from "./basics";

export const CARD = { width: 288, height: 158 };
const TILE = 66;

/** The thumbnails of a card in one canvas: a screen has dozens of cards, and one element each is enough. */
function Strip({ run, card, label }: { run: Run; card: Data; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const drawn = useRef("");
  const frame = useFrame(framesOf(run.facts));
  const n = run.facts.onCard, height = Math.round(TILE * run.sheets.shape);
  useEffect(() => {
    const at = canvas.current!, ratio = devicePixelRatio || 1, key = `${card.latent} ${ratio} ${frame}`;
    if (drawn.current === key) return;
    at.dataset.drawn = "no";
    at.width = (n * TILE + (n - 1) * 3) * ratio;
    at.height = height * ratio;
    const context = at.getContext("2d")!, cells = run.facts.map.reduce((a, b) => a * b);
    context.imageSmoothingQuality = "medium";
    let whole = true;
    for (let i = 0; i < n; i++) {
      if (card.images[i] < 0) continue;
      const x = i * (TILE + 3) * ratio, side = TILE * ratio, tall = height * ratio;
      if (run.sheets.draw(context, card.images[i], x, 0, side, tall)) veil(context, mapOf(run.facts, card.maps.subarray(i * cells, (i + 1) * cells), frame), run.facts, x, 0, side, tall);
      else whole = false;
    }
    if (whole) { drawn.current = key; at.dataset.drawn = "yes"; }
  });
  return <canvas ref={canvas} class="strip" style={{ width: `${n * TILE + (n - 1) * 3}px`, height: `${height}px` }} role="img" aria-label={label} />;
}

export function Card({ run, latent, note }: { run: Run; latent: number; note?: string }) {
  const card = run.card(latent), { columns } = run, name = run.nameOf(latent);
  useEffect(() => run.fetchCards());
  const auroc = columns.auroc[latent], starred = run.names.get(latent)?.starred;
  return (
    <a class="card" href={latentLink(run, latent)} data-latent={latent} data-ready={card ? "yes" : "no"}>
      <span class="card-head"><LatentName run={run} latent={latent} />{starred && <span class="star" title="starred" aria-label="starred">★</span>}<span class="quiet">{note ?? (Number.isNaN(auroc) ? "" : `AUROC ${decimals(auroc)}`)}</span></span>
      {card ? (
        <>
          <Strip run={run} card={card} label={`top images of latent ${latent}${name ? `, ${name}` : ""}, grey where it is silent`} />
          <Profile values={card.frequency} timesteps={run.facts.timesteps} label={`how often latent ${latent} fires along the denoising`} height={20} />
        </>
      ) : <span class="strip empty" />}
      <span class="card-foot quiet"><span>{columns.frequency[latent] ? `on ${percent(columns.frequency[latent])} of tokens` : "never fires"}</span>{!Number.isNaN(columns.monosemanticity[latent]) && <span title="how alike the captions of the images are on which it fires, -1 to 1">monosemanticity {decimals(columns.monosemanticity[latent])}</span>}</span>
    </a>
  );
}
