// One latent: where and when it fires, what it is called, what is like it, and what it does.

import { useEffect, useMemo, useState } from "preact/hooks";
import { framesOf, mapOf, sizeOf, useFrame } from "../clock";
import { glow } from "../heat";
import { Card } from "../parts/card";
import { Along, count, decimals, imageLink, latentLink, Message, percent, Picture, Profile } from "../parts/basics";
import { Comparison, useDrawing } from "../parts/drawing";
import { Naming } from "../parts/naming";
import { ADDED } from "./steer";
import { go, href, useParams } from "../route";
import { useLoaded, useRun, type Run } from "../store";
import { bytes, type Facts, type Latent, type Shown } from "../wire";

export function LatentPage({ run }: { run: Run }) {
  useRun(run);
  const params = useParams(), number = Number(params.latent), n = run.facts.nLatents;
  const { value: latent, error } = useLoaded(() => run.latent(number), [run.info.id, number]);
  useEffect(() => {
    const move = (event: KeyboardEvent) => {
      if (event.metaKey || (event.ctrlKey && !event.altKey) || (event.target as Element).closest("input, textarea, select")) return;
      if (event.key === "]" && number + 1 < n) go(latentLink(run, number + 1));
      if (event.key === "[" && number > 0) go(latentLink(run, number - 1));
    };
    addEventListener("keydown", move);
    return () => removeEventListener("keydown", move);
  }, [run, number]);
  if (error) return <main id="main"><h1>Latent {params.latent}</h1><Message kind="error">{error}</Message></main>;
  const name = run.nameOf(number);
  return (
    <main id="main" class="latent" data-latent={latent ? number : undefined}>
      <nav class="beside" aria-label="neighbouring numbers">
        {number > 0 && <a href={latentLink(run, number - 1)} rel="prev">← {number - 1}</a>}
        {number + 1 < n && <a href={latentLink(run, number + 1)} rel="next">{number + 1} →</a>}
      </nav>
      <h1>{name ?? "Unnamed latent"} <span class="number">{number}</span></h1>
      {!latent ? <p class="quiet">Reading …</p> : <Found key={number} run={run} latent={latent} />}
    </main>
  );
}

function Found({ run, latent }: { run: Run; latent: Latent }) {
  const { facts, info } = run, dead = latent.frequency === 0;
  const amount = Number((ADDED * latent.strongest).toPrecision(3));
  return (
    <>
      <Naming run={run} latent={latent.latent} concept={latent.concept} level={latent.level} auroc={latent.auroc} />
      {dead ? <Message>It never fires on these images.</Message> : (
        <>
          <dl class="figures">
            <div><dt>fires on</dt><dd>{percent(latent.frequency)} of tokens</dd></div>
            <div><dt>in</dt><dd>{count(latent.images)} of {count(facts.nImages)} images</dd></div>
            <div><dt>most at</dt><dd>t = {Math.round(facts.timesteps[latent.step])}</dd></div>
            <div><dt>strongest</dt><dd>{latent.strongest.toPrecision(3)}</dd></div>
            {facts.frames && <div><dt>motion</dt><dd title="how far its place moves while it fires in its top clips, as a share of the frame's longer side">{latent.motion === null || latent.motion === undefined ? "–" : percent(latent.motion)}</dd></div>}
            <div><dt>monosemanticity</dt><dd title="how alike the captions of the images are on which it fires, -1 to 1">{decimals(latent.monosemanticity)}</dd></div>
          </dl>
          {info.steers && <p class="ways">
            <a class="button primary" href={href({ page: "steer", run: info.id, recipe: JSON.stringify({ prompt: latent.top[0].caption, changes: [{ latents: [latent.latent], how: "scale", by: 0 }] }) })}>Switch it off in an image</a>
            <a class="button" href={href({ page: "steer", run: info.id, recipe: JSON.stringify({ prompt: latent.drawn.at(-1)?.caption ?? latent.top[0].caption, changes: [{ latents: [latent.latent], how: "add", by: amount }] }) })}>Turn it up</a>
          </p>}
          <section aria-labelledby="when">
            <h2 id="when">When and where</h2>
            <div class="when">
              <Profile values={latent.frequencies} timesteps={facts.timesteps} label="share of tokens on which it fires, along the denoising" height={110} axis />
              <Where map={bytes(latent.meanMap)} facts={facts} />
            </div>
            {facts.frames && latent.frameFrequencies && latent.frameMeans && (
              <div class="when">
                <Along values={latent.frameFrequencies} said="share of tokens" write={percent} />
                <Along values={latent.frameMeans} said="mean value" write={(value) => value.toPrecision(3)} />
              </div>
            )}
          </section>
          <section aria-labelledby="top"><h2 id="top">Where it is strongest</h2><p class="quiet">Grey where it is silent; point at a picture to see all of it.</p><Pictures run={run} latent={latent.latent} shown={latent.top} /></section>
          <Quantiles run={run} latent={latent} />
          {info.steers && <Effect run={run} latent={latent} />}
          <Like title="Fires like this" note="The cosine of where two latents fire, over all places of all images (estimated, to 0.04)." run={run} near={latent.fires} />
          <Like title="Writes like this" note="The cosine of two decoder directions: what the latents add to the activations." run={run} near={latent.writes} />
        </>
      )}
    </>
  );
}

function Pictures({ run, latent, shown }: { run: Run; latent: number; shown: Shown[] }) {
  const maps = useMemo(() => shown.map((each) => bytes(each.heat)), [shown]);
  return (
    <div class="pictures">{shown.map((each, i) => (
      <a key={each.image} href={imageLink(run, each.image, latent)} title={each.caption}>
        <Picture run={run} image={each.image} map={maps[i]} size={132} label={`image ${each.image}, ${each.caption}: where latent ${latent} fires`} />
        <span class="quiet">{each.value.toPrecision(3)}</span>
      </a>
    ))}</div>
  );
}

/** Images from the whole range of activations: a name that fits the top alone shows here. */
function Quantiles({ run, latent }: { run: Run; latent: Latent }) {
  const { drawn } = latent;
  if (drawn.length < 3) return null;
  const third = Math.ceil(drawn.length / 3);
  const parts: [string, Shown[]][] = [["upper third", drawn.slice(0, third)], ["middle third", drawn.slice(third, 2 * third)], ["lower third", drawn.slice(2 * third)]];
  return (
    <section aria-labelledby="quantiles">
      <h2 id="quantiles">All strengths</h2>
      <p class="quiet">Images drawn at random from the {count(latent.images)} in which it fires, by its peak.</p>
      <div class="thirds">{parts.map(([name, shown]) => <div key={name}><h3>{name}</h3><Pictures run={run} latent={latent.latent} shown={shown} /></div>)}</div>
    </section>
  );
}

function Where({ map, facts }: { map: Uint8Array; facts: Facts }) {
  const [rows, columns] = sizeOf(facts), frame = useFrame(framesOf(facts)), shown = mapOf(facts, map, frame);
  return (
    <figure class="where">
      <svg viewBox={`0 0 ${columns} ${rows}`} role="img" aria-label="where on the image it fires, on average">
        {[...shown].map((value, i) => <rect key={i} x={i % columns} y={Math.floor(i / columns)} width="1" height="1" fill={glow(value / 255, facts.heat)} />)}
      </svg>
      <figcaption>on average over images</figcaption>
    </figure>
  );
}

function Like({ title, note, run, near }: { title: string; note: string; run: Run; near: Latent["fires"] }) {
  if (!near.length) return null;
  return <section><h2>{title}</h2><p class="quiet">{note}</p><div class="cards">{near.slice(0, 12).map((each) => <Card key={each.latent} run={run} latent={each.latent} note={`cosine ${decimals(each.cosine)}`} />)}</div></section>;
}

/** What the image loses without the latent: drawn when it is asked for. */
function Effect({ run, latent }: { run: Run; latent: Latent }) {
  const [place, setPlace] = useState(0), drawing = useDrawing(run);
  const prompt = latent.top[place]?.caption ?? "";
  const recipe = { prompt, seed: 0, n_steps: 20, guidance_scale: run.facts.pipeline === "scenes" ? 2 : 4.5, changes: [{ latents: [latent.latent], how: "scale" as const, by: 0 }] };
  return (
    <section aria-labelledby="effect">
      <h2 id="effect">Effect on the image</h2>
      <p class="quiet">The prompt of one of its top images, drawn as it is and with this latent set to zero.</p>
      <p class="ways">
        <label>Prompt<select value={place} onChange={(e) => setPlace(Number(e.currentTarget.value))}>{latent.top.map((each, i) => <option key={i} value={i}>{each.caption || each.name}</option>)}</select></label>
        <button type="button" disabled={!prompt} onClick={() => void drawing.draw(recipe, [1])}>{drawing.busy ? "Draw again" : "Draw both"}</button>
        {drawing.busy && <button type="button" onClick={() => drawing.cancel()}>Cancel</button>}
      </p>
      <Comparison drawing={drawing} />
    </section>
  );
}
