// All latents: sorted, filtered, searched.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Card, CARD } from "../parts/card";
import { count, Message } from "../parts/basics";
import { Grid } from "../parts/grid";
import { go, href, useParams, type Params } from "../route";
import { useRun, type Run } from "../store";

const SORTS: Record<string, string> = {
  frequency: "fires most", rare: "fires least", auroc: "AUROC of its concept", monosemanticity: "monosemanticity", strongest: "strongest", early: "fires early (noise)", late: "fires late (image)", number: "number",
};

function chosen(run: Run, params: Params): number[] {
  const { columns, facts } = run, { frequency, auroc, monosemanticity, step, concept, strongest } = columns;
  const wanted = params.concept ? facts.concepts.findIndex((each) => each.concept === params.concept) : -1;
  const level = params.level ? new Set(facts.concepts.flatMap((each, i) => (each.level === params.level ? [i] : []))) : null;
  const leastAuroc = Number(params.auroc || 0), leastMono = Number(params.mono || -2), most = Number(params.most || 100) / 100;
  const latents: number[] = [];
  for (let i = 0; i < facts.nLatents; i++) {
    if (params.dead !== "1" && frequency[i] === 0) continue;
    if (wanted >= 0 && concept[i] !== wanted) continue;
    if (level && !level.has(concept[i])) continue;
    if (leastAuroc && !(auroc[i] >= leastAuroc)) continue;
    if (leastMono > -2 && !(monosemanticity[i] >= leastMono)) continue;
    if (frequency[i] > most) continue;
    if (params.step && step[i] !== Number(params.step)) continue;
    if (params.starred && !run.names.get(i)?.starred) continue;
    if (params.named && !run.names.get(i)?.by?.startsWith("person:")) continue;
    latents.push(i);
  }
  const down = (values: ArrayLike<number>) => (a: number, b: number) => (Number.isNaN(values[b]) ? -Infinity : values[b]) - (Number.isNaN(values[a]) ? -Infinity : values[a]) || a - b;
  const time = (i: number) => facts.timesteps[step[i]];
  const orders: Record<string, (a: number, b: number) => number> = {
    frequency: down(frequency), rare: (a, b) => frequency[a] - frequency[b] || a - b, auroc: down(auroc), monosemanticity: down(monosemanticity), strongest: down(strongest),
    early: (a, b) => time(b) - time(a) || frequency[b] - frequency[a], late: (a, b) => time(a) - time(b) || frequency[b] - frequency[a], number: (a, b) => a - b,
  };
  return latents.sort(orders[params.sort] ?? orders.frequency);
}

export function Latents({ run }: { run: Run }) {
  useRun(run);
  const params = useParams(), [found, setFound] = useState<Set<number> | null>(null), [error, setError] = useState("");
  const { text: searched, ...rest } = params;
  const field = useRef<HTMLInputElement>(null), [text, setText] = useState(params.text ?? "");
  const set = (changes: Params | Record<string, string | null>) => go(href({ ...changes }, true), true);
  useEffect(() => { setText(params.text ?? ""); }, [params.text]);
  useEffect(() => {
    if (!params.text) { setFound(null); setError(""); return; }
    let here = true;
    run.search(params.text).then((f) => here && (setFound(new Set(f.latents)), setError("")), (e: Error) => here && setError(e.message));
    return () => { here = false; };
  }, [run, params.text]);
  // Sorting tens of thousands takes longer than searching them: a search only takes from what is sorted. While it runs,
  // what was found before stays.
  const sorted = useMemo(() => chosen(run, params), [run, JSON.stringify(rest), run.names.size]);
  const latents = useMemo(() => (searched && found ? sorted.filter((latent) => found.has(latent)) : sorted), [sorted, found, searched]);
  const steps = run.facts.timesteps.map((t, i) => ({ t, i })).sort((a, b) => b.t - a.t);
  const levels = [...new Set(run.facts.concepts.map((each) => each.level))];
  const select = (name: string, label: string, options: [string, string][]) => (
    <label>{label}<select value={params[name] ?? ""} onChange={(e) => set({ [name]: e.currentTarget.value || null })}>{options.map(([value, said]) => <option key={value} value={value}>{said}</option>)}</select></label>
  );
  return (
    <main id="main">
      <h1 class="visually-hidden">Latents</h1>
      <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
        <label class="wide">Search<input ref={field} id="search" type="search" value={text} placeholder="a concept, a name, a note  ( / )" onInput={(e) => { setText(e.currentTarget.value); set({ text: e.currentTarget.value || null }); }} /></label>
        {select("sort", "Sort by", Object.entries(SORTS).map(([value, said]) => [value === "frequency" ? "" : value, said]))}
        {levels.length > 0 && select("level", "Level", [["", "any"], ...levels.map((each): [string, string] => [each, each])])}
        {run.facts.concepts.length > 0 && select("concept", "Concept", [["", "any"], ...run.facts.concepts.map((each): [string, string] => [each.concept, each.concept])])}
        {select("step", "Fires most at", [["", "any timestep"], ...steps.map(({ t, i }): [string, string] => [String(i), `t = ${Math.round(t)}`])])}
        {select("auroc", "AUROC", [["", "any"], ["0.8", "0.8 or more"], ["0.9", "0.9 or more"], ["0.95", "0.95 or more"]])}
        {select("mono", "Monosemanticity", [["", "any"], ["0.2", "0.2 or more"], ["0.4", "0.4 or more"], ["0.6", "0.6 or more"]])}
        {select("most", "Fires on at most", [["", "any share of tokens"], ["50", "50 %"], ["10", "10 %"], ["1", "1 %"], ["0.1", "0.1 %"]])}
        <label class="check"><input type="checkbox" checked={params.starred === "1"} onChange={(e) => set({ starred: e.currentTarget.checked ? "1" : null })} />starred</label>
        <label class="check"><input type="checkbox" checked={params.named === "1"} onChange={(e) => set({ named: e.currentTarget.checked ? "1" : null })} />named by people</label>
        <label class="check"><input type="checkbox" checked={params.dead === "1"} onChange={(e) => set({ dead: e.currentTarget.checked ? "1" : null })} />also dead ones</label>
      </form>
      <p class="quiet" role="status" data-count={latents.length}>{count(latents.length)} of {count(run.facts.nLatents)} latents</p>
      {(error || run.error) && <Message kind="error">{error || run.error}</Message>}
      {latents.length === 0 && !error ? <Message>No latent fits. Take a filter away, or search for another word.</Message>
        : <Grid n={latents.length} width={CARD.width} height={CARD.height} label="latents" keyOf={(i) => latents[i]} item={(i) => <Card run={run} latent={latents[i]} />} />}
    </main>
  );
}
