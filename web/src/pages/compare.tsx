// Two runs side by side: for each latent of one the latent of the other that fires most like it.

import { useMemo } from "preact/hooks";
import { Card, CARD } from "../parts/card";
import { count, decimals, Message, percent } from "../parts/basics";
import { Grid } from "../parts/grid";
import { go, href, useParams } from "../route";
import { openRun, useLoaded, useRun, type Run } from "../store";
import { packed, type RunList } from "../wire";

export function Compare({ run, list }: { run: Run; list: RunList }) {
  useRun(run);
  const params = useParams(), others = list.runs.filter((each) => each.index.state === "ready" && each.id !== run.info.id);
  const other = others.find((each) => each.id === params.other) ?? others[0];
  const { value, error } = useLoaded(async () => {
    if (!other || list.static) return null;
    const [b, found] = await Promise.all([openRun(other, list.static), packed(`api/compare.bin?a=${run.info.id}&b=${other.id}`)]);
    return { b, match: found.match.values as Int32Array, cosine: found.cosine.values as Float32Array, mutual: found.mutual.values as Int32Array };
  }, [run.info.id, other?.id]);
  return (
    <main id="main">
      <h1>Compare</h1>
      {list.static ? <Message>A static copy does not compare. Open the runs with tide browse.</Message> : !other ? <Message>There is no other run with an index. Start tide browse with several folders, such as those of two trainings or of two blocks.</Message> : (
        <>
          <p class="ways"><label>{run.info.name} with<select value={other.id} onChange={(e) => go(href({ other: e.currentTarget.value }, true))}>{others.map((each) => <option key={each.id} value={each.id}>{each.name}</option>)}</select></label></p>
          {error && <Message kind="error">{error}</Message>}
          {!value && !error && <p class="quiet">Comparing …</p>}
          {value && <Matches a={run} {...value} />}
        </>
      )}
    </main>
  );
}

function Matches({ a, b, match, cosine, mutual }: { a: Run; b: Run; match: Int32Array; cosine: Float32Array; mutual: Int32Array }) {
  useRun(b);
  const params = useParams();
  const rows = useMemo(() => {
    const found = [...match.keys()].filter((i) => match[i] >= 0 && (params.mutual !== "1" || mutual[i]));
    return found.sort((x, y) => (params.order === "apart" ? cosine[x] - cosine[y] : cosine[y] - cosine[x]) || x - y);
  }, [match, params.order, params.mutual]);
  const alive = match.filter((each) => each >= 0).length;
  const set = (changes: Record<string, string | null>) => go(href(changes, true), true);
  return (
    <>
      <p>{count(alive)} latents of {a.info.name} fire. {percent(share(cosine, match, 0.9))} of them have a match above 0.9, {percent(share(cosine, match, 0.7))} above 0.7, and for {percent(mutual.reduce((x, y) => x + y, 0) / Math.max(1, alive))} the match is mutual.</p>
      <form class="filters" onSubmit={(e) => e.preventDefault()}>
        <label>Order<select value={params.order ?? ""} onChange={(e) => set({ order: e.currentTarget.value || null })}><option value="">closest first</option><option value="apart">furthest first</option></select></label>
        <label class="check"><input type="checkbox" checked={params.mutual === "1"} onChange={(e) => set({ mutual: e.currentTarget.checked ? "1" : null })} />mutual matches only</label>
      </form>
      <Grid n={rows.length} width={2 * CARD.width + 84} height={CARD.height} label="matched latents" keyOf={(i) => rows[i]} item={(i) => (
        <div class="match"><Card run={a} latent={rows[i]} /><span class="cosine" title={mutual[rows[i]] ? "mutual" : "one way"}>{mutual[rows[i]] ? "↔" : "→"}<br />{decimals(cosine[rows[i]])}</span><Card run={b} latent={match[rows[i]]} /></div>
      )} />
    </>
  );
}

function share(cosine: Float32Array, match: Int32Array, least: number): number {
  let n = 0, all = 0;
  cosine.forEach((value, i) => { if (match[i] >= 0) { all++; if (value > least) n++; } });
  return n / Math.max(1, all);
}
