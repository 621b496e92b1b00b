// The first page: what the run is, the concepts that are known, and the latents that are worth a look.

import { useMemo } from "preact/hooks";
import { Card } from "../parts/card";
import { count, percent } from "../parts/basics";
import { href } from "../route";
import { useRun, type Run } from "../store";

const SHOWN = 12;

export function Start({ run }: { run: Run }) {
  useRun(run);
  const { facts, info } = run, alive = facts.nLatents - facts.dead;
  const levels = useMemo(() => {
    const found = new Map<string, typeof facts.concepts>();
    for (const each of facts.concepts) found.set(each.level, [...(found.get(each.level) ?? []), each]);
    return [...found];
  }, [run]);
  const best = useMemo(() => clearest(run), [run]);
  const starred = [...run.names].filter(([, said]) => said.starred).map(([latent]) => latent);
  const named = [...run.names].filter(([, said]) => said.by?.startsWith("person:")).map(([latent]) => latent);
  return (
    <main id="main" class="start">
      <h1>What block {facts.block} responds to</h1>
      <p class="lead">
        {count(facts.nLatents)} latents of {info.kind === "SAE" ? "a plain SAE" : "a TIDE"} on {facts.pipeline === "scenes" ? "the bundled pipeline" : facts.pipeline}, read on {count(facts.nImages)} images of {facts.data} at {facts.timesteps.length} timesteps. {count(alive)} fire; {percent(facts.dead / facts.nLatents)} never do.
      </p>
      <p class="ways">
        <a class="button" href={href({ page: "latents", run: info.id })}>All latents</a>
        <a class="button" href={href({ page: "image", run: info.id, image: 0 })}>Images</a>
        {info.steers && <a class="button primary" href={href({ page: "steer", run: info.id })}>Steer an image</a>}
      </p>
      {starred.length > 0 && <Section title="Starred" latents={starred} run={run} more={href({ page: "latents", run: info.id, starred: 1, dead: 1 })} />}
      {named.length > 0 && <Section title="Named by people" latents={named} run={run} more={href({ page: "latents", run: info.id, named: 1, dead: 1 })} />}
      {levels.length > 0 && (
        <section aria-labelledby="concepts">
          <h2 id="concepts">Concepts</h2>
          <p class="quiet">{facts.labels === "masks"
            ? "The latent whose maps fit the masks of a concept best. Chosen and measured on the same images, so the AUROC is optimistic."
            : "The latent whose peaks tell best whether a caption holds the word, chosen on every second image and measured on the others. The model reads captions, too: a latent may follow the word and not what the image shows."}</p>
          {levels.map(([level, concepts]) => (
            <div key={level} class="level">
              <h3>{level}</h3>
              <div class="cards">{concepts.slice(0, 24).map((each) => (
                <div key={each.concept}><Card run={run} latent={each.best} />{each.count > 1 && <a class="more" href={href({ page: "latents", run: info.id, concept: each.concept, sort: "auroc" })}>{each.count} latents of “{each.concept}”</a>}</div>
              ))}</div>
            </div>
          ))}
        </section>
      )}
      <Section title="Clearest without a concept" note="Latents that fire on images whose captions are alike, neither rarely nor everywhere." latents={best} run={run} more={href({ page: "latents", run: info.id, sort: "monosemanticity" })} />
    </main>
  );
}

function Section({ title, note, latents, run, more }: { title: string; note?: string; latents: number[]; run: Run; more: string }) {
  if (!latents.length) return null;
  return (
    <section>
      <h2>{title}</h2>
      {note && <p class="quiet">{note}</p>}
      <div class="cards">{latents.slice(0, SHOWN).map((latent) => <Card key={latent} run={run} latent={latent} />)}</div>
      <a class="more" href={more}>All of them</a>
    </section>
  );
}

function clearest(run: Run): number[] {
  const { frequency, monosemanticity, images, concept } = run.columns, found: number[] = [];
  const least = Math.max(5, run.facts.nImages * 0.01), most = run.facts.nImages * 0.5;
  for (let i = 0; i < frequency.length; i++) if (concept[i] < 0 && images[i] >= least && images[i] <= most && !Number.isNaN(monosemanticity[i])) found.push(i);
  return found.sort((a, b) => monosemanticity[b] - monosemanticity[a]).slice(0, SHOWN);
}
